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
