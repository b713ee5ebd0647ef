"""Faults of the openings of the core, and of what serves many texts at once."""

ROWWISE, PACKED = "test_rowwise.py::test_", "test_serving_packed.py::test_"
SAVED = "test_serving_saved.py::test_"
WEIGHT, ATTENTION = "test_weight.py::test_", "test_attention.py::test_"
COSTS = PACKED + "what_a_packed_pass_costs_is_what_is_predicted"
ALONE = PACKED + "every_text_of_a_packed_row_has_the_logits_it_has_alone"
BITS = ROWWISE + "every_batch_size_and_chunking_of_wide_layers_gives_the_same_bits"
RAGGED = ROWWISE + "rows_of_unequal_length_are_the_same_bits_as_alone"

MUTANTS = [
    # ---- bit-exact rows
    ("ops.py", "<= FEW or _rowwise.get():", "<= FEW:", BITS),
    ("ops.py", "np.matmul(b.T, a.T).T)", "np.matmul(b.T, a.T).reshape(M, -1))",
     "test_ops.py::test_any_number_of_rows_gives_the_same_product"),
    ("ops.py", "_rowwise.reset(token)", "pass",
     ROWWISE + "the_switch_is_off_again_after_the_block_and_after_an_error"),
    ("attention.py", "key_block, head_block = 1, LEAST_KEYS, 1",
     "key_block, head_block = 8, LEAST_KEYS, 1", BITS),
    ("attention.py", ".all() and not is_rowwise():", ".all():",
     ROWWISE + "what_it_costs_is_what_is_predicted"),
    ("attention.py", "> 2 * D and not is_rowwise()", "> 2 * D", BITS),
    ("cost/meetings.py", "* rows for rows, start in groups]\n    else", "for rows, start in groups]\n    else",
     ROWWISE + "what_it_costs_is_what_is_predicted"),
    ("cost/meetings.py", "return Meetings(K * times, H * seen", "return Meetings(times, H * seen",
     ROWWISE + "steps_of_decode_cost_the_sum_of_the_passes"),
    # ---- packed rows
    ("model.py", "np.arange(s, s + n) for s", "np.arange(n) for s", ALONE),
    ("model.py", "np.cumsum(count) - 1]", "np.cumsum(count) - 2]",
     PACKED + "logits_are_given_at_the_places_that_are_wanted"),
    ("model.py", "count if packed else np", "np", COSTS),
    ("model.py", "    if count.sum() != T:", "    if False:",
     PACKED + "forward_refuses_a_packed_row_that_it_cannot_place"),
    ("model.py", "rope_type in BY_LENGTH", "rope_type in ()",
     PACKED + "what_cannot_be_packed_is_refused_and_nothing_is_written"),
    ("serving/packed.py", "as_run(where[s:])", "as_run(where[:n])", ALONE),
    ("serving/packed.py", "        t += n\n", "", ALONE),
    ("serving/packed.py", "values, piece.start)", "values, 0 * piece.start)", ALONE),
    ("serving/packed.py", "[: s + n]", "[: s + n + 1]", ALONE),
    ("serving/pages.py", "run = np.array_equal(places, np.arange(first, first + n))",
     "run = n > 0 and places[-1] == first + n - 1", ALONE),
    ("cost/counter.py", "new * (start + new) for", "new * start for", COSTS),
    ("cost/counter.py", '"mixed" if len(steps) > 1 else ', "", COSTS),
    # ---- weights that are no arrays
    ("ops.py", "kept = None if array else b.kept", "kept = None",
     WEIGHT + "flops_are_counted_as_ever_and_bytes_as_they_are_kept"),
    ("ops.py", "    elif p.weight:", "    elif True:", WEIGHT + "outputs_must_come_first"),
    ("cost/product.py", "kind.kept or (", "(",
     WEIGHT + "flops_are_counted_as_ever_and_bytes_as_they_are_kept"),
    # ---- the peak of the scores
    ("attention.py", "LARGE = 60.0", "LARGE = 600.0",
     ATTENTION + "scores_around_the_limit_neither_overflow_nor_vanish"),
    ("attention.py", ", initial=least)", ")", ATTENTION + "blocked_equals_naive"),
    ("attention.py", "        scores -= peak\n", "",
     ATTENTION + "scores_around_the_limit_neither_overflow_nor_vanish"),
    # ---- a cache that outlives its request
    ("serving/saved.py", "min(common(saved.tokens, prompt), len(prompt) - 1)",
     "common(saved.tokens, prompt)", SAVED + "one_token_is_always_left_to_run"),
    ("serving/saved.py", "min(common(saved.tokens, prompt), len(prompt) - 1)",
     "min(len(saved.tokens), len(prompt) - 1)",
     SAVED + "a_prompt_that_shares_a_beginning_has_the_logits_it_has_alone"),
    ("serving/saved.py", "    cache.v[:, 0, :, :S] = saved.v[:, :, :S]",
     "    cache.v[:, 0, :, :S] = saved.k[:, :, :S]",
     SAVED + "saved_loaded_and_continued_is_continued"),
    ("serving/saved.py", "np.array(tokens[:S], dtype=np.int64)", "np.array(tokens, dtype=np.int64)",
     SAVED + "the_token_that_was_not_run_is_not_saved"),
    ("serving/saved.py", "        if file.read() != found:", "        if False:",
     SAVED + "a_file_with_any_bit_flipped_is_refused"),
    ("serving/saved.py", '        "dtype": model.embed.dtype.name,\n', "",
     SAVED + "a_cache_of_another_model_is_refused_and_the_field_named"),
    ("serving/saved.py", '        "config": config_to_hf(model.config),\n', "",
     SAVED + "a_cache_of_another_model_is_refused_and_the_field_named"),
    ("serving/saved.py", '        "weights": fingerprint(model),\n', "",
     SAVED + "a_cache_of_another_model_is_refused_and_the_field_named"),
    ("serving/saved.py", '        "format": FORMAT,\n', "",
     SAVED + "a_cache_of_another_format_is_refused"),
    ("serving/saved.py", "        if here == there:", "        if here == there or there is None:",
     SAVED + "a_forged_file_is_refused_in_one_line"),
    ("serving/saved.py", "    elif isinstance(weight, tuple):", "    elif False:",
     SAVED + "weights_that_are_no_arrays_can_be_saved_with"),
    ("serving/saved.py", "for start in np.linspace(0, flat.size - SAMPLE, SAMPLES, dtype=np.int64)",
     "for start in (0, flat.size - SAMPLE)",
     SAVED + "a_changed_weight_changes_the_fingerprint_where_it_is_sampled"),
    ("serving/saved.py", "    with new_file(path) as file:\n", "    with open(path, 'wb+') as file:\n",
     SAVED + "a_save_that_fails_leaves_the_old_file_and_nothing_beside_it"),
    ("serving/saved.py", "    if kind in BY_LENGTH:", "    if False:",
     SAVED + "keys_that_turn_by_the_length_are_refused"),
]  # fmt: skip
