"""Faults in quantising a whole model, and the test that notices each."""

CALIBRATE, QUANTIZE = "compression/calibrate.py", "compression/quantize.py"
C = "tests/test_compression_quantize.py::test_"
SUMS = C + "sums_are_those_of_what_goes_into_each_product"
STAGES = C + "a_stage_sees_what_the_stages_before_it_lost"
BLOCKS = C + "a_block_is_fitted_to_what_the_rounded_blocks_before_it_write"
STOPPED = C + "a_stopped_run_goes_on_and_gives_the_same_bits"

MUTANTS = [
    # H of outputs; of the last text alone; in float32; of wo from x
    (CALIBRATE, "x = a.reshape(a.shape[0] * a.shape[1], -1)",
     "x = y.reshape(y.shape[0] * y.shape[1], -1)", SUMS),
    (CALIBRATE, "old.gram + new.gram", "new.gram", SUMS),
    (CALIBRATE, ".astype(np.float64)  # (n, S)", "  # (n, S)", SUMS),
    (CALIBRATE, "self.words.get(kind.name)", "next(iter(self.words.values()))",
     C + "products_with_other_names_are_not_summed"),
    (CALIBRATE, '(("wq", "wk", "wv"), ("wo",))', '(("wq", "wk", "wv", "wo"),)', SUMS),
    (CALIBRATE, "np.maximum(old.most, new.most)", "new.most", SUMS),
    (CALIBRATE, "self.total / self.tokens", "self.total", SUMS),
    # a row without what texts begin with; a text cut at the row's whole length
    (CALIBRATE, "[[*front, *text[first", "[[*text[first",
     C + "rows_begin_as_texts_do"),
    (CALIBRATE, "step = length - len(front)", "step = length",
     C + "rows_begin_as_texts_do"),
    # stages of one block, blocks of one model
    (QUANTIZE, "inputs_of(words, half, xs, layer, config)",
     "inputs_of(words, half, xs, whole, config)", STAGES + "[True]"),
    (QUANTIZE, "half.run(x, layer if sequential else whole, config)",
     "half.run(x, layer, config)", STAGES + "[False]"),
    (QUANTIZE, "half.run(x, layer if sequential else whole, config)",
     "half.run(x, whole, config)", STAGES + "[True]"),
    (QUANTIZE, "xs = through(xs, whole if plan.float_inputs else done.layer, config)",
     "xs = through(xs, done.layer, config)", BLOCKS),
    (QUANTIZE, "xs = through(xs, whole if plan.float_inputs else done.layer, config)",
     "pass", BLOCKS),
    (QUANTIZE, "found = through_the_rest(model, judged, i + 1)",
     "found = through_the_rest(model, judged, i)",
     C + "the_divergence_is_that_of_the_model_rounded_so_far"),
    (QUANTIZE, "np.zeros_like(w), gram)", "rounded / 2, gram)",
     C + "losses_are_told_relative_to_the_outputs"),
    # a run that goes on
    (QUANTIZE, "            kept.put(i, done)\n", "            pass\n", STOPPED),
    (QUANTIZE, "done = kept.get(i, config)\n        whole",
     "done = None\n        whole", STOPPED),
    (QUANTIZE, 'if about["mark"] != self.mark:', "if False:",
     C + "blocks_of_another_run_do_not_count"),
    (QUANTIZE, "digest.update(row.tobytes())", "pass",
     C + "blocks_of_another_run_do_not_count"),
    (QUANTIZE, "digest.update(str(row.shape).encode())", "pass",
     C + "blocks_of_another_run_do_not_count"),
    (QUANTIZE, "if path.stem.isdecimal():", "if True:",
     C + "what_is_kept_comes_back_as_it_was"),
    (QUANTIZE, "same = np.array_equal(w.ravel()", "same = not np.array_equal(w.ravel()",
     C + "a_prepared_norm_reaches_the_file"),
    # quality
    ("compression/quality.py", "p = np.exp(logp)",
     "p = np.exp(logq)", C + "divergence_by_hand"),
    ("compression/quality.py", "np.zeros_like(logp), where=p > 0)",
     "np.zeros_like(logp))", C + "divergence_by_hand"),
    ("compression/quality.py", "logits[0, :-1]", "logits[0, 1:]",
     C + "a_verdict_by_hand"),
]  # fmt: skip

FOLDER, W = "compression/folder.py", "tests/test_compression_folder.py::test_"
HAND = W + "a_matrix_by_hand"
NPZ = (
    W
    + "the_folder_holds_the_weights_of_the_npz[--bits 2 --group-size 5 --no-sym --desc-act]"
)

MUTANTS += [
    (FOLDER, "<< np.uint32(shift)", "<< np.uint32(32 - bits - shift)", HAND),
    (FOLDER, "if shift + bits > WORD:", "if False:",
     W + "numbers_are_laid_end_to_end"),
    (FOLDER, "found.zero - np.uint32(less_one)", "found.zero", HAND),
    (FOLDER, "words_of(stored.T, found.bits).T", "words_of(stored, found.bits)", HAND),
    (FOLDER, 'version = "gptq" if recipe.kind == "symmetric" else "gptq_v2"',
     'version = "gptq_v2"', W + "the_folder_holds_the_weights_of_the_npz"
     "[--bits 4 --group-size 4 --sym --desc-act]"),
    (FOLDER, "codes, groups = codes[:, back], groups[back]",
     "codes, groups = codes[:, back], groups", NPZ),
    (FOLDER, "back = np.argsort(weight.order)", "back = weight.order", NPZ),
    ("files/whole.py", "        shutil.rmtree(part, ignore_errors=True)\n", "        pass\n",
     W + "a_folder_that_fails_leaves_nothing"),
    (FOLDER, 'recipe.act_order and plan.method == "gptq"', "recipe.act_order",
     W + "only_gptq_has_an_order"),
    (FOLDER, "2 ** (bits - 1), dtype=np.uint8", "2**bits - 1, dtype=np.uint8", HAND),
]  # fmt: skip

FAULTS, N = "golden/faults.py", "tests/test_compression_packed.py::test_"
MUTANTS += [
    ("files/packed.py", "for c in range(0, C, step):", "step = C\n        for c in range(0, C, step):",
     N + "a_product_unpacks_little_at_once[1]"),
]  # fmt: skip

NAMES = N + "the_golden_reference_names_what_was_rounded_to_the_nearest"

MUTANTS += [
    (FAULTS, "half = np.float16(scale)", "half = scale", NAMES + "[symmetric-4]"),
    (FAULTS, "low = np.where(low < 0, -high, low)", "low = -high",
     N + "one_sided_groups_are_rounded_as_gptqs_files_have_them"),
    (FAULTS, "np.rint(parts / scale) + zero, 0,", "np.rint(parts / scale) + zero, 1,",
     NAMES + "[asymmetric-4]"),
    ("golden/suspects.py", "group=group, signed=signed)", "group=group, signed=True)",
     NAMES + "[asymmetric-4]"),
]  # fmt: skip
