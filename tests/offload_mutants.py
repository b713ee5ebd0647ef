"""Faults in what fits into a memory and in guesses made ahead, and who notices."""

OFFLOAD, AHEAD = "contexts/offload.py", "contexts/ahead.py"
T = "tests/test_contexts_offload.py::test_"
PLAN = T + "a_plan_keeps_to_its_room_and_no_other_of_its_kind_reads_less"
LRU = T + "lru_misses_everything_where_pinning_misses_what_has_no_room"
ON = T + "guessing_on_takes_what_a_simulation_of_it_takes"
TEXT = T + "a_draft_that_guesses_on_changes_no_text_and_leaves_no_thread"

MUTANTS = [
    # more than there is; the choice that reads most
    (OFFLOAD, "if sizes[pinned] <= room]", "if sizes[pinned] <= 2 * room]", PLAN),
    (OFFLOAD, "best = min(fits,", "best = max(fits,", PLAN),
    (OFFLOAD, "held.popitem(last=False)", "held.popitem(last=True)", LRU),
    (OFFLOAD, "return room + (layers - room) * passes", "return layers * passes", LRU),
    (OFFLOAD, "max(read, free[i % buffers]) + reading", "read + reading",
     T + "a_pass_takes_the_longer_of_reading_and_computing_at_least"),
    (OFFLOAD, "for i in range(guesses + 1))", "for i in range(guesses))",
     T + "tokens_of_a_scan_are_a_geometric_sum"),
    (OFFLOAD, "again = (1 - acceptance ** (guesses + 1))",
     "again = (1 - acceptance**guesses)", ON),
    # a guess for another text; numbers that depend on which thread was faster
    (AHEAD, "if ahead.tokens[:1] == text[-1:] and", "if",
     T + "guesses_made_ahead_are_those_of_the_text_as_it_went_on"),
    (AHEAD, "self.worker.shutdown()", "pass", TEXT),
]  # fmt: skip
