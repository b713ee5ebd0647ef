"""Faults in the chapter on fewer bits, and the test that notices each."""

GRID, G = "compression/grid.py", "tests/test_compression_grid.py::test_"
RULES = G + "three_rules_give_three_grids"
SHORT = G + "the_last_group_may_be_short"
HALF = G + "half_goes_to_the_even_step"

MUTANTS = [
    # the zero point is not subtracted; or rounded down; floor for round; half up
    (
        GRID,
        "points.astype(dtype) - spread(grid.zero, S, grid.group)",
        "points.astype(dtype)",
        G + "four_weights_by_hand",
    ),
    (GRID, "np.round(-low / scale)", "np.floor(-low / scale)", G + "four_weights_by_hand"),
    (GRID, "np.round(ratio)", "np.floor(ratio)", HALF),
    (GRID, "np.round(ratio)", "np.floor(ratio + 0.5)", HALF),
    # the group of an input, and of the last ones
    (GRID, "np.arange(S) // group]", "np.arange(S) % group]", SHORT),
    (GRID, "np.arange(0, w.shape[1], group)", "np.arange(0, w.shape[1] - 1, group)",
     SHORT),
    # the largest weight instead of the largest magnitude
    (GRID, "high = np.maximum(-low, high)", "high = high", SHORT),
    (
        GRID,
        "np.maximum, np.abs(w), size",
        "np.maximum, w, size",
        G + "a_codebook_rounds_to_its_nearest_point",
    ),
    # the symmetric grids of GPTQ and of others
    (GRID, "2 ** (bits - 1) - 1)", "2 ** (bits - 1))", RULES),
    (GRID, "lowest=int(kind == \"restricted\")", "lowest=0", RULES),
    (
        GRID,
        "low = np.where(one_sided, low, -high)",
        "low = -high",
        G + "gptqs_symmetric_grid_of_a_group_without_negatives_is_half_as_wide",
    ),
    # the range need not contain zero
    (
        GRID,
        "np.minimum(over_groups(np.minimum, w, group), none)",
        "over_groups(np.minimum, w, group)",
        G + "a_group_far_from_zero_still_has_zero_in_its_grid",
    ),
    (GRID, "(high - low) / levels == 0", "high < low", G + "zeros_get_the_grid_of_one"),
    # clipping: another exponent, the last scale tried, or none
    (GRID, "** exponent", "** 2", G + "clipping_gives_up_the_outlier"),
    (
        GRID,
        "np.where(error < least, tried.scale, best)",
        "tried.scale",
        G + "clipping_gives_up_the_outlier",
    ),
    (GRID, "SHRINKS = 80", "SHRINKS = 1", G + "clipping_gives_up_the_outlier"),
    # float64 in a network of float32
    (
        GRID,
        "(most / np.abs(points).max()).astype(w.dtype)",
        "most / np.abs(points).astype(np.float64).max()",
        G + "codebooks_keep_the_dtype",
    ),
    (
        GRID,
        "middle = (rising[1:] + rising[:-1]) / 2",
        "middle = rising[1:]",
        G + "equal_points_take_the_first_code_and_a_tie_the_lower_point",
    ),
    (
        GRID,
        "median - fall[n - i]",
        "outermost + fall[i]",
        G + "the_points_of_nf4_are_the_published_ones",
    ),
]  # fmt: skip

GPTQ, Q = "compression/gptq.py", "tests/test_compression_gptq.py::test_"
CODES = Q + "codes_are_those_of_auto_gptq_and_gptqmodel"
OBS = Q + "it_is_obs_with_a_fresh_inverse_for_every_column[1-False]"
FACTOR = Q + "a_factor_of_the_inverse"

MUTANTS += [
    # no damping; the factor of H instead of its inverse; the lower one
    (GPTQ, "return hessian + extra * np.eye", "return hessian + 0 * np.eye", CODES),
    (GPTQ, "inverse = np.linalg.inv(damped(hessian, damping))",
     "inverse = damped(hessian, damping)", FACTOR),
    (GPTQ, "np.ascontiguousarray(lower.T)", "lower", FACTOR),
    # the error is not divided by U_jj; or goes the wrong way
    (GPTQ, "e = (column - value) / U[j, j]", "e = column - value", OBS),
    (GPTQ, "rest[:, j - first :] -=", "rest[:, j - first :] +=", OBS),
    (GPTQ, "-= e * U[j, j:last]", "-= e * U[j:last, j]", OBS),
    # later blocks: forgotten, or updated through the wrong corner of U
    (GPTQ, "w[:, last:] -= multiply(errors, U[first:last, last:])",
     "w[:, last:] -= 0", OBS),
    (GPTQ, "multiply(errors, U[first:last, last:])",
     "multiply(errors, U[last:, first:last].T)", OBS),
    # the order is not undone: of the codes, of the groups
    (GPTQ, "codes[:, back], grids", "codes, grids", CODES),
    (GPTQ, "groups[back], error", "groups, error", CODES),
    (GPTQ, "np.argsort(-np.diag(hessian)", "np.argsort(np.diag(hessian)", CODES),
    # grids that see what happens inside a block
    (GPTQ, "grids.at(j, int(order[j]), w)", "grids.at(j, int(order[j]), "
     "np.concatenate([w[:, :first], rest, w[:, last:]], axis=1))", CODES),
    (GPTQ, "return place // self.size, self.found[place // self.size]",
     "return j // self.size, self.found[j // self.size]", CODES),
    # dead inputs keep their weights
    (GPTQ, "    w[:, dead] = 0\n", "", Q + "dead_inputs_lose_their_weights"),
    (GPTQ, "w if self.size == S else np.where(dead, 0, w)", "w",
     Q + "dead_inputs_lose_their_weights"),
    (GPTQ, "float((errors**2).sum()) / 2", "float((errors**2).sum())",
     Q + "the_error_is_the_objective"),
    (GPTQ, "damping = min(max(10 * damping, 1e-3), MOST_DAMPING)",
     "damping = MOST_DAMPING + 1", Q + "few_inputs_raise_the_damping"),
]  # fmt: skip

FILE, PACK = "files/packed.py", "compression/packed.py"
P = "tests/test_compression_packed.py::test_"
ROW, LOW = P + "a_row_by_hand", P + "the_first_code_lies_in_the_lowest_bits"
SAVED = P + "a_packed_file_loads_as_it_was_saved"
VALUES = P + "it_stands_for_the_values_of_its_codes"

MUTANTS += [
    # the high nibble first: when packing, in the table
    (PACK, "full[:, i::n] << (8 // n * i)", "full[:, i::n] << (8 // n * (n - 1 - i))",
     LOW),
    (PACK, "(8 // n * np.arange(n))", "(8 // n * np.arange(n)[::-1])", LOW),
    # the zero point is not subtracted, or after the scale
    (FILE, "((self.zero, np.subtract), (self.scale, np.multiply))",
     "((self.scale, np.multiply),)", ROW),
    (FILE, "((self.zero, np.subtract), (self.scale, np.multiply))",
     "((self.scale, np.multiply), (self.zero, np.subtract))", ROW),
    (PACK, "np.arange(2**bits) - middle, None", "np.arange(2**bits), None", VALUES),
    # the short last group; the rows of a later block; float64 that leaks
    (FILE, "yield w[:, whole * group :], numbers[:, whole:]",
     "yield w[:, whole * group :], numbers[:, :1]", VALUES),
    (FILE, "slice(None) if len(self.scale) == 1 else slice(first, last)",
     "slice(0, last - first)", P + "blocks_are_those_of_plain_rows"),
    (FILE, "y = np.empty((M, C), dtype=self.dtype)",
     "y = np.empty((M, C), dtype=np.float64)", VALUES),
    (FILE, "step = max(1, (BLOCK if is_rowwise() else UNPACKED) // max(self.inputs, 1))",
     "step = 7",
     P + "blocks_are_those_of_plain_rows"),
    # the order of the inputs: not used, used the wrong way, kept wrongly
    (FILE, "np.ascontiguousarray(a[:, self.order])",
     "np.ascontiguousarray(a[:, np.argsort(self.order)])", VALUES),
    (FILE, "w = w[:, np.argsort(self.order)]", "w = w[:, self.order]", VALUES),
    (PACK, "codes, groups = codes[:, order], groups[order]",
     "codes, groups = codes, groups[order]", P + "order_of_groups_by_hand"),
    # scales that float16 does not hold
    (PACK, "scale >= kind.smallest_normal", "scale >= 0",
     P + "scales_that_float16_does_not_hold_stay_float32"),
    # bytes that are not counted
    (FILE, "parts = (self.codes, self.scale, self.zero, self.order)",
     "parts = (self.codes, self.scale)", ROW),
    ("contexts/reading.py", "if not isinstance(tensor, np.ndarray):", "if False:",
     P + "layers_on_storage_refuse_packed_weights"),
]  # fmt: skip

ROUND, CACHE = "compression/kv_rounding.py", "compression/kv_cache.py"
KV = "tests/test_compression_kv_cache.py::test_"
HAND = KV + "four_keys_by_hand"
DUE = KV + "what_is_rounded_follows_the_published_rule"
SAME = KV + "logits_are_those_of_a_plain_cache_that_holds_rounded_numbers"
ATTENTION = KV + "attention_over_a_prompt_and_token_by_token_is_that_of_kivi"
BACK = KV + "rows_can_be_rolled_back"
KV_BYTES = KV + "bytes_are_the_closed_form"

MUTANTS += [
    # the axes swapped: of keys and values, of the rows along which groups run
    (ROUND, 'Rule(bits, "channel", group), Rule(bits, "token", group)',
     'Rule(bits, "token", group), Rule(bits, "channel", group)', ATTENTION),
    (ROUND, 'x = x.swapaxes(1, 2) if per == "channel" else x',
     'x = x.swapaxes(1, 2) if per == "token" else x', HAND),
    # the lowest number is forgotten: when rounding, when restoring
    (ROUND, "(rows - spread(low, S, rule.group)) /", "rows /", HAND),
    (ROUND, "        codes += every(lowest)\n", "        pass\n",
     KV + "codes_scales_and_values_are_those_of_kivi"),
    # the range is widened to contain 0, as that of weights is
    (ROUND, "low = over_groups(np.minimum, rows, rule.group)",
     "low = np.minimum(over_groups(np.minimum, rows, rule.group), 0)", HAND),
    # floor for round; a group of equal numbers is divided by zero
    (ROUND, "np.round(steps)", "np.floor(steps)",
     KV + "the_middle_between_two_steps_goes_to_the_even_one"),
    (ROUND, "np.round(steps)", "np.floor(steps + 0.5)",
     KV + "the_middle_between_two_steps_goes_to_the_even_one"),
    (ROUND, "np.where(scale == 0, x.dtype.type(1), scale)", "scale",
     KV + "a_group_of_one_token_per_channel_rounds_nothing"),
    # llama.cpp's 8 bits have 127 steps to either side
    (ROUND, "np.maximum(high, -low) / (half - 1)", "np.maximum(high, -low) / half",
     KV + "eight_symmetric_bits_are_those_of_llama_cpp"),
    (ROUND, "np.maximum(high, -low) / (half", "high / (half",
     KV + "symmetric_codes_by_hand"),
    (ROUND, "    if not (np.isfinite(scale).all() and np.isfinite(low).all()):",
     "    if False:", KV + "numbers_that_float16_does_not_hold_are_refused"),
    # a boundary at the length; a residual that is off by one
    (ROUND, "return n // residual * residual", "return n", DUE),
    (ROUND, "return n // residual * residual", "return (n - 1) // residual * residual",
     DUE),
    (ROUND, "return max(0, n - residual)", "return max(0, n - residual + 1)", DUE),
    # a group's range over all heads
    (CACHE, "codes, scale, lowest = round_off(plain[:, first:last], rule, ends)",
     "codes, scale, lowest = round_off(plain[:, first:last], rule, ends)\n"
     "        scale[:] = scale.max(axis=0)", KV + "heads_have_scales_of_their_own"),
    # new positions are rounded before they were attended to
    (CACHE, "        settle(store, b, done, first + n)\n",
     "        settle(store, b, done, first + n)\n"
     "        end = int(store.done[b])\n"
     "        plain[:, :end] = unpack(store, b, end)\n", ATTENTION),
    # the residual is lost, or one position too short; a row's neighbour is changed
    (CACHE, "        plain[:, done:first] = store.floats[b, :, : first - done]\n", "",
     SAME),
    (CACHE, "store.floats[b, :, : n - last] = plain[:, last:n]",
     "store.floats[b, :, : n - last - 1] = plain[:, last : n - 1]", ATTENTION),
    (CACHE, "store.codes[b, :, first:last] = packed",
     "store.codes[:, :, first:last] = packed", SAME),
    (CACHE, "        plain[:, first + n : first + T] = 0  # padding, as in a new cache\n",
     "        plain[:, first + n : first + T] = 1e9\n", SAME),
    # rolled back: what is gone is unpacked, what stays is rounded again
    (CACHE, "done = min(int(store.done[b]), first)", "done = int(store.done[b])", BACK),
    (CACHE, "last = max(first, due(n, rule, store.residual))",
     "last = due(n, rule, store.residual)\n    first = min(first, last)",
     KV + "what_is_rounded_is_not_rounded_again"),
    (CACHE, "first = done - done % whole", "first = 0",
     KV + "what_is_rounded_is_not_rounded_again"),
    (CACHE, "own = slice(first // whole, last // whole)", "own = slice(first, last)",
     ATTENTION),
    # codes that are not packed, floats that are kept for all positions
    (CACHE, "bytes_ = -(-D // per_byte(rule.bits))", "bytes_ = D", KV_BYTES),
    (CACHE, "R = config.head_dim, capacity, min(capacity, rules.residual)",
     "R = config.head_dim, capacity, capacity", KV_BYTES),
    ("cost/rounded.py", "capacity // keys.group * D", "capacity * D // keys.group",
     KV_BYTES),
    ("cost/rounded.py", "return 2 if bits <= 2 else 4", "return bits if bits <= 4 else 4",
     KV + "memory_falls_to_what_the_bits_say"),
]  # fmt: skip

TEXTS, KT = "compression/kv_texts.py", "tests/test_compression_kv_texts.py::test_"
LOST = KT + "losses_are_those_of_the_distributions"

MUTANTS += [
    # a prompt's chunk forgotten; the text that is judged lacks its prompt
    (TEXTS, "ends(text[len(job.prompt) :])", "ends(text)",
     KT + "a_text_that_fits_the_residual_is_plain_decoding"),
    # the token itself instead of the one after it; the text's last one is read, too
    (TEXTS, "return some[:-1], some[1:]", "return some[1:], some[:-1]",
     KT + "surprise_is_read_off_decoding_token_by_token"),
    # the first piece counts; the distributions swapped; a token that is not the likeliest
    (TEXTS, "_loss(rules, cache, rows[1:], usual)", "_loss(rules, cache, rows, usual)",
     LOST),
    (TEXTS, "np.concatenate(before[1:])", "np.concatenate(before)", LOST),
    (TEXTS, "divergence(exact, logits)", "divergence(logits, exact)", LOST),
    (TEXTS, "logits = forward_rounded(model, part[None], cache)[0]",
     "logits = forward_rounded(model, part[None], cache)[0]\n"
     "            exact = exact + 0.01 * logits", LOST),
    # bits without the residual
    (TEXTS, "return 8 * (cache.k.nbytes + cache.v.nbytes) / numbers",
     "return 8 * (cache.k.codes.nbytes + cache.v.codes.nbytes) / numbers", LOST),
]  # fmt: skip

RANKS, FACTORED = "compression/ranks.py", "compression/factored_keys.py"
R = "tests/test_compression_ranks.py::test_"
BY_HAND, STUDY = (
    R + "measures_of_a_spectrum_by_hand",
    R + "a_study_has_random_matrices_beside",
)
BEST = R + "no_factors_give_better_scores_than_those_from_scores"
UNSEEN = R + "losses_are_judged_on_tokens_that_were_not_fitted_to"

MUTANTS += [
    # energies of singular values instead of their squares; entropy of squares
    (RANKS, "energy = np.cumsum(np.square(values))", "energy = np.cumsum(values)",
     BY_HAND),
    (RANKS, "share * energy[-1] * (1 - 1e-12))) + 1", "share * energy[-1])) + 1",
     BY_HAND),
    (RANKS, "share * energy[-1] * (1 - 1e-12))) + 1",
     "share * energy[-1] * (1 - 1e-12)))", BY_HAND),
    (RANKS, "shares = values[values > 0] / max(values.sum(), 1e-300)",
     "shares = values[values > 0] ** 2 / max((values**2).sum(), 1e-300)", BY_HAND),
    (RANKS, "np.square(values / values[0]).sum()", "(values / values[0]).sum()", BY_HAND),
    # keys turned once more instead of back; the wrong key head; no mask; no root of D
    (RANKS, "-sin / size", "sin / size", R + "keys_are_turned_back_to_what_they_were"),
    (RANKS, "size = np.square(cos) + np.square(sin)", "size = 1",
     R + "keys_are_turned_back_to_what_they_were"),
    (RANKS, "(x[i, h // G] for x in found[1:])", "(x[i, h % 3] for x in found[1:])",
     R + "heads_are_those_of_the_model"),
    (RANKS, "softmax(np.where(np.tri(len(q), dtype=bool), scores, -np.inf))",
     "softmax(scores)", R + "attention_has_rows_that_sum_to_one_and_no_future"),
    (RANKS, "scores = multiply(q, k.T) / math.sqrt(q.shape[1])",
     "scores = multiply(q, k.T)", R + "attention_has_rows_that_sum_to_one_and_no_future"),
    # no random matrices beside
    (RANKS, "for some in (own, noise)]", "for some in (own, own)]", STUDY),
    # the pseudo-inverse of the wrong side; A and B swapped; directions in disorder
    (FACTORED, "m = multiply(np.linalg.pinv(triangle), left[:, :r]) * values",
     "m = multiply(triangle.T, left[:, :r]) * values", BEST),
    (FACTORED, "return Factors(m.astype(k.dtype), p.astype(k.dtype))",
     "return Factors(p.astype(k.dtype), m.astype(k.dtype))", BEST),
    (FACTORED, "multiply(triangle.T, left[:, :r]) * inverse",
     "multiply(triangle.T, left[:, -r:]) * inverse", BEST),
    (FACTORED, "p = right[:r].T.astype(k.dtype)", "p = right[:, :r].astype(k.dtype)",
     R + "keys_from_keys_are_the_best_of_their_rank"),
    (FACTORED, "where=some)", "where=values > -1)",
     R + "a_direction_without_scores_gets_none"),
    # fitted and judged on one half; one layer's factors for all; one query head of two
    (FACTORED, "attend = Factored(first, way, r)", "attend = Factored(found, way, r)",
     UNSEEN),
    (FACTORED, "i = self.calls % len(self.m)", "i = 0",
     R + "layers_take_their_factors_in_turn"),
    (FACTORED, "q = found.q[i, head * G : (head + 1) * G]",
     "q = found.q[i, head * G : head * G + 1].repeat(G, axis=0)",
     R + "every_layer_and_head_has_its_own_factors"),
    (FACTORED, "return r * (positions + 2 * D) / positions",
     "return r * (positions + D) / positions", UNSEEN),
]  # fmt: skip
