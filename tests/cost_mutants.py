"""Faults of the cost chapters, each with the law that must notice it.

The first is a product that nobody counts: by itself the test that reads the package
must find it, and so must the comparison of what was counted with what was predicted.
"""

COUNTER, FORMULAS = "test_cost_counter.py::test_", "test_cost_formulas.py::test_"
ROOFLINE = "test_cost_roofline.py::test_"
EQUAL = FORMULAS + "counted_equals_predicted_in_prefill_chunks_and_decode"
DOWN = 'y = einsum("BTF,EF->BTE", hidden, layer.w_down, "down_proj")'

MUTANTS = [
    # ---- a product that is not counted
    ("feedforward.py", DOWN, "y = hidden @ layer.w_down.T",
     "test_style.py::test_only_the_first_chapter_multiplies_matrices"),
    ("feedforward.py", DOWN, "y = (hidden @ layer.w_down.T)", EQUAL),
    ("cost/counter.py", "self._mine.write(kind)", "self._mine.write(kind.name)",
     COUNTER + "a_product_costs_what_its_loops_do"),
    ("ops.py", "watching if once else (*watching, observer)", "(*watching, observer)",
     COUNTER + "a_block_inside_a_block_of_the_same_counter_counts_once"),
    ("ops.py", "watching if once else (*watching, observer)", "(observer,)",
     COUNTER + "nested_counters_each_count_their_own_block"),
    ("ops.py", "_observers.reset(token)", "pass",
     COUNTER + "nothing_is_counted_outside_the_block"),
    ("ops.py", "b.shape, name, a.dtype, kept)", "b.shape, name, np.dtype(np.float32), kept)",
     COUNTER + "bytes_are_told_by_dtype"),
    ("model.py", "    begin(start, count", "    (start, count",
     COUNTER + "phases_are_told_apart_by_what_rows_hold_and_get"),
    # ---- one product
    ("cost/product.py", "flops = 2 * math.prod(", "flops = math.prod(",
     COUNTER + "a_product_costs_what_its_loops_do"),
    ("cost/product.py", "(a + y) * kind.dtype.itemsize", "(a + y) * 4",
     COUNTER + "bytes_are_told_by_dtype"),
    ("cost/product.py", "same.total + p.total", "p.total",
     COUNTER + "work_carried_into_the_threads_of_a_pool_is_counted"),
    ("cost/product.py", "        flops, a = 0, 0\n", "        flops, a = 1, 0\n",
     COUNTER + "a_lookup_moves_rows_and_computes_nothing"),
    # ---- the counter
    ("cost/counter.py", "start > 0 and new == 1", "new == 1",
     COUNTER + "phases_are_told_apart_by_what_rows_hold_and_get"),
    ("cost/counter.py", "class ThreadsTally(threading.local):", "class ThreadsTally:",
     COUNTER + "counter_of_two_threads_keeps_their_places_apart"),
    ("cost/counter.py", "new * (start + new) for start", "new * new for start",
     FORMULAS + "counter_knows_the_full_square_of_what_was_executed"),
    ("cost/counter.py", "2 * 2 * D * H", "2 * D * H",
     COUNTER + "counter_equals_torchs_but_for_the_masked_half_of_attention"),
    ("cost/counter.py", "        yield from self.folded\n", "",
     COUNTER + "a_long_text_keeps_sums_and_not_every_line"),
    ("cost/counter.py", "        self.calls.clear()\n", "",
     COUNTER + "a_long_text_keeps_sums_and_not_every_line"),
    ("cost/counter.py", "        del self.lines[:n]\n", "",
     COUNTER + "a_long_text_keeps_sums_and_not_every_line"),
    ("cost/counter.py", "context.copy().run(", "context.run(",
     COUNTER + "work_carried_into_the_threads_of_a_pool_is_counted"),
    ("cost/counter.py", "                here[line.lookup][self.place] += 1\n", "",
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
    ("cost/meetings.py", "default_blocks(batch, queries, G, longest)",
     "default_blocks(1, queries, G, longest)",
     FORMULAS + "counted_equals_predicted_beyond_the_default_blocks"),
    ("cost/meetings.py", "turns * times", "times", EQUAL),
    ("cost/meetings.py", "short - X // ceiling(K, g)) for", "short - X // (K // g)) for",
     FORMULAS + "many_steps_of_decode_cost_the_sum_of_single_ones"),
    ("cost/meetings.py", "rest * (whole + 1)", "rest * whole",
     FORMULAS + "many_steps_of_decode_cost_the_sum_of_single_ones"),
    # ---- the closed forms
    ("cost/formulas.py", "batch * (1 if last else new)", "batch * new", EQUAL),
    ("cost/formulas.py", "moved = layers * positions * (inputs + outputs)",
     "moved = layers * positions * outputs", EQUAL),
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
    ("cost/memory.py", "vectors * D)", "D)",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
    ("cost/memory.py", "min(K, head_block) * G", "K * G",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
    ("cost/memory.py", "positions * 4 * F", "positions * 3 * F",
     FORMULAS + "the_fullest_moment_is_as_full_as_predicted"),
    # ---- the roofline
    ("cost/hardware.py", 'wider[wider.index(dtype) :]', "wider",
     ROOFLINE + "type_without_a_figure_has_the_rate_of_the_next_wider_one"),
    ("cost/roofline.py", "return max(self.math, self.memory)",
     "return self.math + self.memory",
     ROOFLINE + "operator_takes_the_longer_time_and_the_ridge_tells_which"),
    ("cost/roofline.py", "        between += passes * config", "        between += config",
     ROOFLINE + "an_interpreter_takes_its_time_in_every_layer_of_every_pass"),
    ("cost/roofline.py", "_replace(flops=half.flops, ", "_replace(",
     ROOFLINE + "fused_attention_multiplies_the_triangle_and_moves_no_score"),
    ("cost/roofline.py", "whole.activations - pairs)", "whole.activations)",
     ROOFLINE + "fused_attention_is_the_bound_that_a_kernel_has"),
    ("cost/facts.py", "if held > machine.memory:", "if False:",
     "test_cli_cost.py::test_that_a_model_does_not_fit_is_said_before_any_speed"),
    ("cost/roofline.py", '"overhead": self.between', '"overhead": 0.0',
     ROOFLINE + "an_interpreter_takes_its_time_in_every_layer_of_every_pass"),
    ("cost/roofline.py", "ROTATION * (H + K) * D", "ROTATION * H * D",
     ROOFLINE + "a_key_head_is_turned_and_kept_and_its_values_are_kept"),
    ("cost/roofline.py", "math.ceil((memory_one", "math.floor((memory_one",
     ROOFLINE + "decode_turns_compute_bound_at_the_batch_that_is_told"),
    ("cost/roofline.py", "steps, machine, kinds, passes=steps)",
     "steps, machine, kinds)",
     ROOFLINE + "an_interpreter_takes_its_time_in_every_layer_of_every_pass"),
    ("cost/roofline.py", "max(0.0, held - memory) / storage", "(held - memory) / storage",
     ROOFLINE + "what_fits_needs_no_storage"),
    ("cost/roofline.py", "for i in range(guesses + 1))", "for i in range(guesses))",
     ROOFLINE + "speedup_is_theorem_3_8"),
]  # fmt: skip

WAYS, Z = "cost/ways.py", "tests/test_cost_ways.py::test_"
WAY = Z + "what_is_counted_is_what_is_predicted"

MUTANTS += [
    (WAYS, "max(0, first + 1 - W)", "max(0, first - W)", WAY),
    (WAYS, "first // size * size, block)", "first, block)", WAY),
    (WAYS, "max(0, rest - (size - cells))", "min(rest, cells)", WAY),
    (WAYS, "last // stride + 1", "last // stride", WAY),
    (WAYS, "-(-(new - r) // stride)", "new // stride", WAY),
    (
        WAYS,
        "(len(starts) * new, shared)",
        "(new, shared)",
        Z + "a_shared_prefix_costs_what_is_predicted",
    ),  # fmt: skip
    (
        WAYS,
        "iter([(new, cached), (new, new)])",
        "iter([(new, cached + new)])",
        Z + "a_tree_costs_what_is_predicted",
    ),  # fmt: skip
]
