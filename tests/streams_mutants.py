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
