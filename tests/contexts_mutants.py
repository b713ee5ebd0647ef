"""Faults in the chapter on long texts, and the test that notices each."""

PERPLEXITY, T = "contexts/perplexity.py", "tests/test_contexts_perplexity.py::test_"
COUNTED = T + "every_token_but_the_first_counts_once_with_enough_before_it"
NUMBER = T + "the_number_is_what_the_definition_says"
HALVES = T + "halves_are_those_of_llama_cpp"

MUTANTS = [
    (
        PERPLEXITY,
        "Window(begin, counted, end)",
        "Window(begin, begin + 1, end)",
        COUNTED,
    ),
    (PERPLEXITY, "        counted = end\n", "        counted = end + 1\n", COUNTED),
    (PERPLEXITY, "if end == n:", "if end + 1 == n:", COUNTED),
    (PERPLEXITY, "windows, counted = [], 1", "windows, counted = [], 0", COUNTED),
    (PERPLEXITY, "length // 2 + 1, b + length", "length // 2, b + length", HALVES),
    (PERPLEXITY, "n - length + 1, length)", "n, length)", HALVES),
    (PERPLEXITY, "text[t + wanted + 1]", "text[t + wanted]", NUMBER),
    (
        PERPLEXITY,
        "first - begin - 1 - t, 0",
        "first - begin - 1, 0",
        T + "a_long_window_is_read_in_pieces",
    ),
    (
        PERPLEXITY,
        "        text[0] = bos\n",
        "        text[-1] = bos\n",
        T + "a_window_begins_with_bos_where_that_is_wanted",
    ),
    (
        PERPLEXITY,
        "self.nats.std() / math.sqrt(n - 1)",
        "self.nats.std() / math.sqrt(n)",
        NUMBER,
    ),
    (
        PERPLEXITY,
        "math.exp(self.nats.mean())",
        "math.exp(np.median(self.nats))",
        NUMBER,
    ),
]

STREAMING, S = "contexts/streaming.py", "tests/test_contexts_streaming.py::test_"
PLACE = S + "what_is_kept_is_what_it_would_have_been_at_its_new_place"
ALONE = S + "with_one_layer_a_stream_reads_sinks_and_window_alone"
SMALL = S + "a_prompt_of_any_length_goes_through_a_small_window"

MUTANTS += [
    # turned forward; values turned, too; sinks turned
    (STREAMING, "-np.atleast_1d(drop)", "np.atleast_1d(drop)", PLACE),
    (
        STREAMING,
        "v[:, :, kept] = v[:, :, old:length].copy()",
        "v[:, :, kept] = rotate(v[:, :, old:length].swapaxes(1, 2), cos, sin)"
        ".swapaxes(1, 2)",
        PLACE,
    ),
    (
        STREAMING,
        "old, length = sinks + drop, int(cache.length[0])",
        "old, length = drop, int(cache.length[0])",
        PLACE,
    ),
    # the length is forgotten; the factor of YaRN is used twice
    (STREAMING, "    cache.length[0] -= drop\n", "", PLACE),
    (STREAMING, "return cos / size, sin / size", "return cos, sin", PLACE),
    # the sinks go first; too little is forgotten, or too late
    (
        STREAMING,
        "max(n, discard), sinks)",
        "max(n, discard), 0)",
        ALONE,
    ),
    (STREAMING, "max(n, discard)", "n", ALONE),
    (STREAMING, "max(1, (W - sinks) // 2)", "W - sinks", SMALL),
    # a stream ends with the window
    (
        STREAMING,
        "        new = choose(processed[None], [job.rng]).tolist()\n",
        "        new = choose(logits[None], [job.rng]).tolist()\n",
        S + "pieces_of_a_stream_that_fits_are_those_of_generate",
    ),
]

SPARSE, P = "contexts/sparse.py", "tests/test_contexts_sparse.py::test_"
MASK, BLOCKS = (
    P + "the_mask_is_the_definition",
    P + "blocks_of_a_pattern_are_its_mask_in_any_pieces",
)

MUTANTS += [
    (SPARSE, "lambda i, j: i - j < W,", "lambda i, j: i - j <= W,", MASK),
    (SPARSE, "max(0, first + 1 - W)", "max(0, first + 2 - W)", BLOCKS),
    (SPARSE, "low = high - cells", "low, high = 0, cells", MASK),
    (
        SPARSE,
        "return j[(j % size >= low)",
        "return j[(j % size > low)",
        BLOCKS,
    ),
    (SPARSE, "(j > i[:, None]) | ~", "~", BLOCKS),
    (
        SPARSE,
        "np.arange(first % stride, first + n, stride)",
        "np.arange(0, first + n, stride)",
        BLOCKS,
    ),
    (
        SPARSE,
        "np.arange(first // size * size, first + n)",
        "np.arange(first, first + n)",
        BLOCKS,
    ),
    (
        SPARSE,
        "few * (few + 1) // 2",
        "few * (few - 1) // 2",
        P + "pairs_of_a_window_are_in_closed_form",
    ),
    (
        SPARSE,
        "for pattern in layers:",
        "for pattern in layers[::-1]:",
        P + "a_fixed_pattern_reaches_everything_only_if_blocks_come_first",
    ),
    (
        SPARSE,
        "self.layer = (self.layer + 1) % self.layers",
        "self.layer += 1",
        P + "layers_take_turns_and_begin_anew_with_every_pass",
    ),
]

STATES, Q = "contexts/states.py", "tests/test_contexts_states.py::test_"
PIECES = Q + "keys_in_any_pieces_and_any_order_are_all_keys"

MUTANTS += [
    # weights without the maximum; two states without a key are not a number
    (
        STATES,
        "    peak = np.maximum(one.lse, other.lse)  # (T, H)\n"
        "    peak = np.maximum(peak, peak.dtype.type(LOWEST))  # (T, H)\n",
        "    peak = np.zeros_like(one.lse)\n",
        Q + "scores_that_would_overflow_alone_are_merged",
    ),
    (
        STATES,
        "    peak = np.maximum(peak, peak.dtype.type(LOWEST))  # (T, H)\n",
        "",
        Q + "two_states_without_a_key_make_a_third_without_a_warning",
    ),
    # lse averaged; y merged without its weight; the scale applied twice
    (
        STATES,
        "peak + _log(total))\n\n\ndef state_of",
        "(one.lse + other.lse) / 2)\n\n\ndef state_of",
        PIECES,
    ),  # fmt: skip
    (
        STATES,
        "y = one.y * weight[..., None] + other.y * weight_other[..., None]",
        "y = (one.y + other.y) * total[..., None] / 2",
        PIECES,
    ),
    (
        STATES,
        "transpose(1, 2, 0, 3) * (1 / math.sqrt(D))",
        "transpose(1, 2, 0, 3) * (1 / D)",
        Q + "a_state_is_the_average_and_the_logarithm_of_the_sum",
    ),
    (
        STATES,
        "keys.stop) > position[:, None]",
        "keys.stop) >= position[:, None]",
        Q + "what_lies_in_the_future_is_hidden",
    ),
]

TILES, F = "contexts/tiles.py", "tests/test_contexts_tiles.py::test_"
TRAFFIC, C = "cost/traffic.py", "tests/test_cost_tables.py::test_"
ANY_TILES = F + "tiles_of_any_size_are_attention"
MOVED = F + "every_array_moves_as_listed"

MUTANTS += [
    # keys loaded inside the loop over queries; the result not read again
    (
        TILES,
        'q_i, o_i = slow.load("q", q, i), slow.load("o", o, i)',
        'k_j, v_j = slow.load("k", k, j), slow.load("v", v, j)\n'
        '            q_i, o_i = slow.load("q", q, i), slow.load("o", o, i)',
        MOVED,
    ),
    (TILES, 'slow.load("o", o, i)', "o[..., i, :]", MOVED),
    # what was found before is not made smaller when the maximum grows
    (TILES, "l_i * old_weight * o_i", "l_i * o_i", ANY_TILES),
    (TILES, "total = shrink * total + p", "total = total + p", ANY_TILES),
    # a tile that lies in the future is visited
    (
        TRAFFIC,
        "cached + queries.stop <= keys.start",
        "cached + queries.stop < keys.start",
        C + "tiles_move_what_their_closed_forms_say",
    ),
    # as many queries as the text has; four tiles of bytes instead of elements
    (
        TRAFFIC,
        "columns, min(columns, D)",
        "columns, columns",
        C + "tiles_of_a_chip_are_those_of_the_paper_and_need_four_vectors",
    ),
    (
        TRAFFIC,
        "columns = -(-on_chip // (4 * D))",
        "columns = -(-on_chip // (8 * D))",
        C + "tiles_of_a_chip_are_those_of_the_paper_and_need_four_vectors",
    ),
    # O, l and m are not begun
    (
        TRAFFIC,
        "    yield Traffic(new, 0, 2 * new)  # line 2: begin O, sum and maximum\n",
        "",
        C + "traffic_of_the_papers_setting_is_what_it_published",
    ),
]

SPLITS, PREFIXES = "contexts/splits.py", "contexts/prefixes.py"
J = "tests/test_contexts_splits.py::test_"
SHARED = J + "a_shared_prefix_is_met_once_and_nothing_changes"
BRANCH = J + "every_branch_of_a_tree_is_what_it_is_alone"

MUTANTS += [
    (
        SPLITS,
        "occupancy(n) >= 0.85 * best",
        "occupancy(n) >= best",
        J + "splits_fill_the_processors_as_flash_attention_does",
    ),
    (
        SPLITS,
        "pieces(n) != pieces(n - 1)",
        "True",
        J + "splits_fill_the_processors_as_flash_attention_does",
    ),
    # a causal mask on the prefix, as if it began where the queries do
    (
        PREFIXES,
        "v[0, :, :shared])",
        "v[0, :, :shared], in_the_future(0, slice(0, B * T), slice(0, shared)))",
        SHARED,
    ),
    # the suffix begins at position 0 of its mask; every row reads the prefix
    (
        PREFIXES,
        "in_the_future(first, slice(0, T), own)",
        "in_the_future(first - shared, slice(0, T), own)",
        SHARED,
    ),
    (PREFIXES, "visible[t] |= visible[parent]", "visible[t, parent] = True", BRANCH),
    (
        PREFIXES,
        "v[b, :, own], hidden)\n            y[b]",
        "v[b, :, own])\n            y[b]",
        BRANCH,
    ),  # fmt: skip
]
