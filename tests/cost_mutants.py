"""Faults of the cost chapters, each with the law that must notice it.

The first is a product that nobody counts: by itself the test that reads the package
must find it, and so must the comparison of what was counted with what was predicted.
"""

COUNTER, FORMULAS = "test_cost_counter.py::test_", "test_cost_formulas.py::test_"
EQUAL = FORMULAS + "counted_equals_predicted_in_prefill_chunks_and_decode"
DOWN = 'y = einsum("BTF,EF->BTE", hidden, layer.w_down, "down_proj")'

MUTANTS = [
    # ---- a product that is not counted
    ("feedforward.py", DOWN, "y = hidden @ layer.w_down.T",
     "test_style.py::test_only_the_first_chapter_multiplies_matrices"),
    ("feedforward.py", DOWN, "y = (hidden @ layer.w_down.T)", EQUAL),
    ("ops.py", "        observer.product(name, equation, a, b, y)\n", "        pass\n",
     COUNTER + "a_product_costs_what_its_loops_do"),
    ("ops.py", "    if observer in _observers.get():\n", "    if False:\n",
     COUNTER + "a_block_inside_a_block_of_the_same_counter_counts_once"),
    ("model.py", "    begin(start, T)\n", "",
     COUNTER + "phases_are_told_apart_by_what_rows_hold_and_get"),
    # ---- one product
    ("cost/product.py", "calls * 2 * math.prod(", "calls * math.prod(",
     COUNTER + "a_product_costs_what_its_loops_do"),
    ("cost/product.py", "(a, one), (b, two), (y, np", "(a, one), (b, one), (y, np",
     COUNTER + "bytes_are_told_by_dtype"),
    ("cost/product.py", "same.total + p.total", "p.total",
     COUNTER + "work_carried_into_the_threads_of_a_pool_is_counted"),
    ("cost/product.py", "2 * n * two.itemsize", "n * two.itemsize",
     COUNTER + "json_holds_the_same_numbers_at_every_node"),
    # ---- the counter
    ("cost/counter.py", "if T == 1 and 0 not in starts", "if T == 1",
     COUNTER + "phases_are_told_apart_by_what_rows_hold_and_get"),
    ("cost/counter.py", "class Own(threading.local):", "class Own:",
     COUNTER + "counter_of_two_threads_keeps_their_places_apart"),
    ("cost/counter.py", "sum(starts) + T * len(starts)", "sum(starts) + T",
     FORMULAS + "counter_knows_the_full_square_of_what_was_executed"),
    ("cost/counter.py", "2 * 2 * T * tally.seen", "2 * T * tally.seen",
     COUNTER + "counter_equals_torchs_but_for_the_masked_half_of_attention"),
    ("cost/counter.py", "        yield from self.folded\n", "",
     COUNTER + "many_shapes_are_summed_and_not_all_kept"),
    ("cost/counter.py", "            calls.clear()\n", "            pass\n",
     COUNTER + "many_shapes_are_summed_and_not_all_kept"),
    ("cost/counter.py", "context.copy().run(", "context.run(",
     COUNTER + "work_carried_into_the_threads_of_a_pool_is_counted"),
    ("cost/counter.py", "if name == \"embed_tokens\":", "if False:",
     COUNTER + "a_lookup_moves_rows_and_computes_nothing"),
    # ---- the tree
    ("cost/report.py", "if leaf.name != \"embed_tokens\"", "if True",
     COUNTER + "text_is_a_tree_whose_parts_add_up"),
    ("cost/report.py", "numbers if each_layer else numbers[:1]", "numbers",
     COUNTER + "text_is_a_tree_whose_parts_add_up"),
    # ---- how queries meet keys
    ("cost/meetings.py", "new * (new + 1) // 2", "new * new // 2", EQUAL),
    ("cost/meetings.py", "seen = cached + t + n\n", "seen = cached + t + query_block\n",
     EQUAL),
    ("cost/meetings.py", "H * n * times, K * seen)", "H * n, K * seen)", EQUAL),
    ("cost/meetings.py", "rows * H * new, rows * K * S)", "rows * H * new, rows * H * S)",
     FORMULAS + "blocks_are_the_square_at_one_end_and_the_triangle_at_the_other"),
    ("cost/meetings.py", "else [(1, start) for start in starts]",
     "else [(len(starts), max(starts))]",
     FORMULAS + "counted_equals_predicted_where_rows_hold_different_lengths"),
    ("cost/meetings.py", "config, len(starts), new, query_block)",
     "config, 1, new, query_block)",
     FORMULAS + "counted_equals_predicted_beyond_the_default_blocks"),
    ("cost/meetings.py", "rest * (whole + 1)", "rest * whole",
     FORMULAS + "many_steps_of_decode_cost_the_sum_of_single_ones"),
    # ---- the closed forms
    ("cost/formulas.py", "batch * (1 if last else new)", "batch * new", EQUAL),
    ("cost/formulas.py", "moved = layers * positions * (wide + narrow)",
     "moved = layers * positions * narrow", EQUAL),
    ("cost/formulas.py", "work.passes * elements, 0, moved", "elements, 0, moved",
     EQUAL),
    ("cost/formulas.py", "new_tokens - 1, cached + prompt", "new_tokens, cached + prompt",
     FORMULAS + "a_generated_text_costs_what_is_predicted"),
    ("cost/formulas.py", "0 if config.tie_word_embeddings else V * E", "V * E",
     FORMULAS + "parameters_are_those_of_the_tensors"),
    ("cost/formulas.py", "L * E * (H * D + bias)", "L * E * H * D",
     FORMULAS + "parameters_are_those_of_the_tensors"),
    ("cost/formulas.py", "2 * config.num_key_value_heads *",
     "2 * config.num_attention_heads *",
     FORMULAS + "cache_elements_are_those_of_the_cache"),
    # ---- the textbook, and memory
    ("cost/textbook.py", "heads = config.num_attention_heads + 2",
     "heads = config.num_attention_heads + 1",
     FORMULAS + "a_token_costs_two_flops_per_parameter_that_is_multiplied"),
    ("cost/textbook.py", "_squares(end) - _squares(prompt - 1)",
     "_squares(end) - _squares(prompt)",
     FORMULAS + "without_a_cache_every_token_runs_the_whole_text"),
    ("cost/memory.py", "copies = 2 if", "copies = 1 if",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
    ("cost/memory.py", "        each += D if t else 0\n", "",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
    ("cost/memory.py", "positions * 4 * F", "positions * 3 * F",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
]  # fmt: skip
