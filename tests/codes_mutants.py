"""Faults in ANT, OliVe and folds, and the test that notices each."""

ANT, A = "compression/ant.py", "tests/test_compression_ant.py::test_"
FLINT = A + "the_first_bit_of_a_flint_tells_an_int_from_a_float"
POINTS = A + "points_of_four_bits"
SUMS = A + "errors_at_many_scales_by_hand"
OLIVE, V = "compression/olive.py", "tests/test_compression_olive.py::test_"
BEGIN = V + "abfloats_begin_where_the_grid_ends"
PAIRS = V + "bytes_of_three_pairs"
TWO = V + "of_two_outliers_the_paper_keeps_the_larger_and_the_code_the_first"
HALVES = V + "the_border_and_halves_go_as_released"
SIGMA = V + "three_sigma_looks_at_the_mean_too"
ODD = V + "the_last_input_of_an_odd_row_is_alone"
RELEASED = V + "numbers_are_those_of_the_released_code"
FOLDS, F = "compression/folds.py", "tests/test_compression_folds.py::test_"
SAME = F + "a_folded_model_is_the_same_function"
SMOOTH = F + "smoothing_by_hand"
AWQ = F + "awq_factors_by_hand"
TOOK = F + "factors_are_those_of_autoawq"
QUANTIZE = "compression/quantize.py"
WRONG = "tests/test_compression_quantize.py::test_misuse_is_one_line_and_exit_code_2"

MUTANTS = [
    # what the bits of a flint, a float and an int mean
    (ANT, "2 * lower << 2 * zeros", "lower << 2 * zeros", FLINT),
    (ANT, "2 * lower << 2 * zeros", "2 * lower << zeros", FLINT),
    (ANT, "if lower else 4 ** (v - 1)", "if lower else 2 ** (v - 1)", FLINT),
    (ANT, "zeros = v - 1 - lower.bit_length()", "zeros = v - lower.bit_length()", FLINT),
    (ANT, "(2**mantissa + fraction) <<", "fraction <<", POINTS),
    (ANT, "<< (exponent - 1) if exponent else", "<< exponent if exponent else", POINTS),
    (ANT, "1 << (code - 1) if code else 0", "1 << code", POINTS),
    (ANT, "*range(-half, 0)", "*range(0, -half, -1)", POINTS),
    # ties, the widest scale, and which kind is taken
    (ANT, "nearest(-ratio, -grid.points)", "nearest(ratio, grid.points)",
     A + "half_goes_up"),
    (ANT, "most / float(codebook.max())", "most / float(-codebook.min())",
     A + "half_goes_up"),
    (ANT, "error < best[0]", "error <= best[0]", A + "the_first_of_equal_kinds_is_taken"),
    (ANT, "error < best[0]", "error > best[0]", A + "the_kind_follows_the_tail"),
    (ANT, "kinds if bits <= MOST_BITS else", "kinds if bits <= 8 else",
     A + "the_first_of_equal_kinds_is_taken"),
    (ANT, "np.where(widest == 0, w.dtype.type(1), widest)", "widest.copy()",
     A + "zeros_stay_zeros"),
    # the error by running sums
    (ANT, "- 2 * q * np.diff", "- q * np.diff", SUMS),
    (ANT, "x = np.sort(x.astype(np.float64))", "x = x.astype(np.float64)", SUMS),
    (ANT, "(x**2).sum() + terms", "terms", SUMS),
    # the identifier is no number; the code of zeros is no outlier
    (OLIVE, "normal[2 ** (bits - 1)] = 0", "normal[0] = 0",
     V + "no_normal_number_has_the_identifier"),
    (OLIVE, "for code in range(1, half)", "for code in range(half)", BEGIN),
    # where outliers begin, and their mantissa's hidden one
    (OLIVE, "(int(top) - 1).bit_length() - mantissa",
     "(int(top) - 1).bit_length() - mantissa + 1", BEGIN),
    (OLIVE, "(int(top) - 1).bit_length()", "int(top).bit_length()", BEGIN),
    (OLIVE, "(2**mantissa + fraction) <<", "fraction <<", BEGIN),
    (OLIVE, "5 if released else 3", "3 if released else 5", BEGIN),
    # who is the victim, and on which side
    (OLIVE, "[:, :, ::-1]", "[:, :, :]", PAIRS),
    (OLIVE, "format.outlier[codes], format.normal[codes]",
     "format.normal[codes], format.outlier[codes]", PAIRS),
    (OLIVE, "np.stack([byte & 15, byte >> 4], axis=1)",
     "np.stack([byte >> 4, byte & 15], axis=1)", ODD),
    (OLIVE, "beside & (~outlier | gives_way)", "beside & ~outlier", TWO),
    (OLIVE, "size <= other, size < other", "size >= other, size > other", TWO),
    (OLIVE, "size <= other, size < other", "size <= other, size <= other", TWO),
    (OLIVE, "if keep == \"larger\":", "if keep != \"larger\":", TWO),
    (OLIVE, "% 2 == 1  # (2 * pairs,)", "% 2 == 0  # (2 * pairs,)", TWO),
    # pairs run on into the next row
    (OLIVE, "x.reshape(len(x), -1, 2)[:, :, ::-1]",
     "np.roll(x, -1).reshape(len(x), -1, 2)[:, :, ::-1]", PAIRS),
    (OLIVE, "(0, ratio.shape[1] % 2)", "(ratio.shape[1] % 2, 0)", ODD),
    # the border between normal numbers and outliers
    (OLIVE, "far = size >= format.border", "far = size > format.border", HALVES),
    (OLIVE, "far = size >= format.border", "far = size > format.top", HALVES),
    (OLIVE, "nearest(-ratio, -format.normal)", "nearest(ratio, format.normal)", HALVES),
    (OLIVE, "nearest(-ratio[far], -format.outlier[used])",
     "nearest(ratio[far], format.outlier[used])", HALVES),
    # scales: without the mean, of the whole population, chosen before pairing
    (OLIVE, "np.abs(mean + 3 * sigma), np.abs(mean - 3 * sigma)", "3 * sigma, 3 * sigma",
     SIGMA),
    (OLIVE, "np.abs(mean + 3 * sigma), np.abs(mean - 3 * sigma)",
     "mean + 3 * sigma, mean + 3 * sigma", SIGMA),
    (OLIVE, "np.maximum(n - 1, 1)", "n", SIGMA),
    (OLIVE, "value = decode(encode(w / wide, format, keep), format)[:, :S] * wide",
     "value = format.normal[encode(w / wide, format, keep)][:, :S] * wide",
     RELEASED + "[spiked-int-4-False]"),
    (OLIVE, "base * (ratio * 0.01) / format.top", "base * (ratio * 0.01) / format.border",
     RELEASED + "[t3-int-4-False]"),
    (OLIVE, "error < best[0]", "error > best[0]",
     RELEASED + "[spiked-ant-int-flint-4-False]"),
    # what a fold divides, and what it multiplies
    (FOLDS, "\"values\": Place((\"wv\", \"bv\"), (\"wo\",))",
     "\"values\": Place((\"wv\",), (\"wo\",))", SAME),
    (FOLDS, "Place((\"w_up\", \"b_up\"), (\"w_down\",))", "Place((\"w_up\",), (\"w_down\",))",
     SAME),
    (FOLDS, "Place((\"w_up\", \"b_up\"), (\"w_down\",))",
     "Place((\"w_gate\", \"b_gate\"), (\"w_down\",))", SAME),
    (FOLDS, "(\"wq\", \"wk\", \"wv\"))", "(\"wq\", \"wk\"))", SAME),
    (FOLDS, "own = np.repeat(s, w.shape[1] // len(s), axis=0)",
     "own = np.tile(s, (w.shape[1] // len(s), 1))", SAME),
    (FOLDS, "new[word] = w * own", "new[word] = w / own", SAME),
    (FOLDS, "s[..., None] if w.ndim > s.ndim else s", "s[..., None] if w.ndim > 1 else s",
     SAME),
    (FOLDS, "s = s.astype(made.dtype)", "s = s.astype(np.float64)", F + "a_fold_by_hand"),
    # SmoothQuant
    (FOLDS, "most**alpha / np.maximum(heavy, LEAST) ** (1 - alpha)",
     "most ** (1 - alpha) / np.maximum(heavy, LEAST) ** alpha", SMOOTH),
    (FOLDS, "np.max([np.abs(w).max(axis=0) for w in weights], axis=0)",
     "np.abs(weights[0]).max(axis=0)", SMOOTH),
    (FOLDS, "np.abs(w).max(axis=0) for", "w.max(axis=0) for", SMOOTH),
    (FOLDS, "np.maximum(heavy, LEAST)", "heavy", SMOOTH),
    (FOLDS, "return np.maximum(s, LEAST)", "return s", SMOOTH),
    (FOLDS, "for place in (\"attn\", \"mlp\"):", "for place in (\"attn\",):",
     F + "smoothed_inputs_and_weights_are_equally_large"),
    (FOLDS, "\"channel\" if self.per_token else", "\"tensor\" if self.per_token else",
     F + "eight_bits_by_hand"),
    (FOLDS, "find_grid(w, 8, \"restricted\", group)",
     "find_grid(w, 8, \"symmetric\", group)", F + "eight_bits_by_hand"),
    (FOLDS, "self.dtype.itemsize * len(self.weight)", "self.dtype.itemsize",
     F + "bytes_of_eight_bits_are_counted"),
    # AWQ
    (FOLDS, "s / np.sqrt(s.max() * s.min())", "s / s.max()", AWQ),
    (FOLDS, "(heavy ** (1 - rho) + 1e-4)", "(heavy**rho + 1e-4)", TOOK),
    (FOLDS, "(heavy ** (1 - rho) + 1e-4)", "heavy ** (1 - rho)", AWQ),
    (FOLDS, "np.maximum(s, 1e-4)", "s", AWQ),
    (FOLDS, "spread(most, size.shape[1], group) + 1e-6)", "1)", AWQ),
    (FOLDS, "awq_factors(inputs.mean, heavy", "awq_factors(inputs.most, heavy", TOOK),
    (FOLDS, "values_of(rtn(w * s, recipe)) / s, inputs.gram",
     "values_of(rtn(w, recipe)), inputs.gram", TOOK),
    (FOLDS, "if error < least", "if error > least or step == 0", TOOK),
    (FOLDS, "place != \"values\" or own_values", "True",
     F + "awq_leaves_values_alone_that_query_heads_share"),
    (FOLDS, "place != \"values\" or own_values", "place != \"values\"",
     F + "awq_leaves_values_alone_that_query_heads_share"),
    # the methods of quantize
    (QUANTIZE, "if recipe.bits not in method.bits", "if recipe.bits > 8",
     WRONG + "[olive of 8 bits]"),
    (QUANTIZE, "if method.own_values and", "if False and", WRONG + "[nf4 of olive]"),
    (QUANTIZE, "(recipe.kind, recipe.exponent) != (\"symmetric\", None)",
     "recipe.kind != \"symmetric\"", WRONG + "[clipped ant]"),
    (QUANTIZE, "by_rtn, True, awq)", "by_rtn, True)",
     "tests/test_compression_quantize.py::test_awq_folds_before_it_rounds"),
    (QUANTIZE, "ant(w, recipe.bits, recipe.group)", "ant(w, recipe.bits)",
     "tests/test_compression_quantize.py::test_values_of_their_own_need_no_text[ant]"),
    # a byte that is left over makes gaps between rows
    ("files/packed.py", "np.ascontiguousarray(points.reshape(len(points), -1)[:, :S])",
     "points.reshape(len(points), -1)[:, :S]",
     "tests/test_compression_packed.py::test_rows_lie_without_gaps"),
]  # fmt: skip
