"""Faults in the files on endless texts, and the test that notices each."""

SINKS, T = "contexts/sinks.py", "tests/test_contexts_sinks.py::test_"
ONE_PASS = T + "one_pass_is_the_stream_token_by_token"
COUNTED = T + "what_is_forgotten_is_counted_as_a_stream_counts"

MUTANTS = [
    # positions of the text; the query turned forward; sinks that are met twice
    (SINKS, "turned_back(config, e, q", "turned_back(config, 0 * e, q", ONE_PASS),
    (SINKS, "turned_back(config, e, q", "turned_back(config, -e, q", ONE_PASS),
    (SINKS, "stream.sinks + e if e[-1] else e", "e", ONE_PASS),
    # the future of a query among the sinks; what a later query of the block forgot
    (
        SINKS,
        "hidden_from(i, sinks, np.zeros_like(i))",
        "np.zeros((len(i), len(sinks)), dtype=bool)",
        ONE_PASS,
    ),
    (SINKS, "(j > i[:, None]) | (j < least[:, None])", "j > i[:, None]", ONE_PASS),
    # forgotten one token late, and not in steps
    (SINKS, "i + 1 - stream.window, 0", "i - stream.window, 0", COUNTED),
    (SINKS, "    return -(-over // stream.discard) * stream.discard", "    return over",
     COUNTED),
    (
        SINKS,
        "max(1, (window - n_keep) // 2)",
        "max(1, window // 2)",
        T + "a_context_shift_forgets_half_of_what_follows_n_keep",
    ),
]  # fmt: skip

MUTANTS += [
    (SINKS, "more * (W - d)", "more * W", T + "pairs_of_a_stream_are_in_closed_form"),
    (SINKS, "(2 * W - d + 1) // 2", "(2 * W - d) // 2",
     T + "pairs_of_a_stream_are_in_closed_form"),
]  # fmt: skip

RING, R = "contexts/ring.py", "tests/test_contexts_ring.py::test_"
BITS = R + "a_ring_has_the_bits_of_a_cache_of_the_whole_text"

MUTANTS += [
    # written over what a query of the same piece sees
    (RING, "stream.window + piece - 1, dtype)", "stream.window, dtype)", BITS),
    # sinks go round, too; a ring one slot too short
    (RING, "slots(np.arange(low, high), self.stream.sinks, self.N)",
     "slots(np.arange(low, high), 0, self.N)", BITS),
    (RING, "(p - sinks) % (N - sinks))", "(p - sinks) % (N - sinks - 1))",
     R + "positions_take_turns_and_sinks_keep_their_slots"),
    # positions that stop where the ring ends
    (RING, "positions=np.arange(first, first + T)[None]", "positions=None", BITS),
    (RING, "first, N)\n    # forward", "0, N)\n    # forward", BITS),
    (RING, "    ring.length[0] += T\n", "", BITS),
]  # fmt: skip

EVICTION, E = "contexts/eviction.py", "tests/test_contexts_eviction.py::test_"
GREEDY = E + "h2o_is_greedy_eviction_by_accumulated_attention"
CUT = E + "a_cut_prompt_is_read_on_as_if_the_rest_had_never_been_seen"
HEAVIEST = E + "the_heaviest_stay_in_order"

MUTANTS += [
    # weights of the last query alone; not moved with their keys; left in free cells
    (EVICTION, ":S] += weights_of(", ":S] = weights_of(", GREEDY),
    (
        EVICTION,
        "    kept.weight[..., :M] = np.take_along_axis(kept.weight, cells, axis=-1)\n",
        "",
        GREEDY,
    ),
    (EVICTION, "    kept.weight[..., M:held] = 0\n", "", GREEDY),
    # one head decides for all; values that stay where they were
    (
        EVICTION,
        "softmax(scores).sum(axis=(1, 2))",
        "np.broadcast_to(softmax(scores).sum(axis=(0, 1, 2)), k.shape[:2])",
        GREEDY,
    ),
    (
        EVICTION,
        "for store in (kept.cache.k, kept.cache.v):",
        "for store in (kept.cache.k,):",
        CUT,
    ),
    # cells for positions; the lightest stay; the recent ones may go
    (
        EVICTION,
        "np.arange(first, first + len(tokens))[None]  # (1, T)",
        "kept.cache.length[0] + np.arange(len(tokens))[None]",
        GREEDY,
    ),
    (EVICTION, "order[..., older.shape[-1] - heavy :]", "order[..., :heavy]", HEAVIEST),
    (EVICTION, "older = weight[..., : S - recent]", "older = weight[..., :S]", HEAVIEST),
    # a mean over fewer places at the ends; the window's own weights are pooled in
    (EVICTION, "around.mean(axis=-1)", "around.sum(axis=-1)",
     E + "pooling_takes_the_places_around"),
    (EVICTION, "[(half, half)]", "[(0, 2 * half)]",
     E + "pooling_takes_the_places_around"),
    (EVICTION, "max(0, len(tokens) - window)", "len(tokens) - 1", CUT),
]  # fmt: skip

FORGETTING, STEADY = "contexts/forgetting.py", "contexts/steady.py"
F = "tests/test_cli_forget.py::test_"

MUTANTS += [
    # tokens before the window count, too; the wrong way is named
    (FORGETTING, "nats[W - 1 :]))", "nats[W:]))",
     F + "rows_of_streams_are_the_streams"),
    (FORGETTING, "shift = context_shift(W, c)", "shift = Stream(W, c)",
     F + "rows_of_streams_are_the_streams"),
    (FORGETTING, "text[prompt + 1 :]]", "text[prompt:-1]]",
     F + "a_prompt_from_which_nothing_is_cut_is_read_as_the_text"),
    # all ways write into one cache
    (FORGETTING, "cache = KVCache(*(array.copy() for array in kept.cache))",
     "cache = kept.cache",
     F + "a_prompt_that_is_cut_is_read_on_with_the_rest_hidden"),
    (STEADY, "float(1000 * np.median(", "float(np.median(",
     F + "a_slope_is_told_per_thousand_tokens_and_a_slow_tick_does_not_move_it"),
    (STEADY, "if n % every == 0:", "if n % every == 1:",
     F + "ticks_come_when_so_many_tokens_have"),
]  # fmt: skip

SPARSE, P = "contexts/sparse.py", "tests/test_contexts_sparse.py::test_"

MUTANTS += [
    # all heads look at the same cells; key heads of neighbours are exchanged
    (SPARSE, "high = size - turn * cells", "high = size",
     P + "heads_look_at_cells_of_their_own"),
    (SPARSE, "ways[h % len(ways)]", "ways[0]", P + "heads_look_at_cells_of_their_own"),
    (SPARSE, "np.s_[:, h // G : h // G + 1]",
     "np.s_[:, h % k.shape[1] : h % k.shape[1] + 1]",
     P + "heads_look_at_cells_of_their_own"),
    # what both patterns see is counted twice
    (SPARSE, "both = sum(max(0, n - d) for d in range(0, W, stride))", "both = n",
     P + "pairs_of_merged_heads_are_in_closed_form"),
    (SPARSE, "both = n // size * (cells * (cells + 1) // 2)", "both = 0",
     P + "pairs_of_merged_heads_are_in_closed_form"),
]  # fmt: skip

KEEPING, K = "contexts/keeping.py", "tests/test_contexts_keeping.py::test_"

MUTANTS += [
    (KEEPING, "        make_room(kept, n, recent)\n", "        make_room(kept, 1, recent)\n",
     K + "h2o_makes_room_before_every_token_and_reads_a_prompt_in_pieces"),
    # positions are those of the cells; what was dropped stays in memory
    (KEEPING, "held, kept.read\n", "held, held\n", K + "snapkv_gives_back_what_it_dropped"),
    (KEEPING, "moved(self.model, whole, self.new)", "whole",
     K + "snapkv_gives_back_what_it_dropped"),
    (KEEPING, "if new < job.max_new_tokens:", "if False:",
     K + "a_text_over_chosen_keys_ends_with_the_context"),
]  # fmt: skip
