"""Faults of the one face for generation, each of which the named test must notice.

(file, old text, new text, test).
"""

TASK, STOPPING = "generation/task.py", "decoding/stopping.py"
SPECULATIVE = "decoding/speculative.py"
T = "test_generation.py::test_"

MUTANTS = [
    # a draft goes on after the end of a format, where nothing fits
    (SPECULATIVE, "if draft.stop(guessed[start:]):", "if draft.stop([]):",
     T + "draft_guesses_nothing_after_the_end_of_a_format"),
    # the text keeps the end token, and so leaves its own format
    (TASK, "if self.decoder is None or token in self.silent:", "if self.decoder is None:",
     T + "draft_guesses_nothing_after_the_end_of_a_format"),
    # what comes after the stop string is shown, if it comes in another piece
    (STOPPING, 'self.held, self.ended = "", True', 'self.held = ""',
     "test_decoding_stopping.py::"
     "test_nothing_is_shown_after_the_stop_string_not_even_half_a_character"),
    # the echo of a prompt that ends within a character
    (TASK, '"".join(map(self.decoder.push, task.prompt)) if echo',
     "tokenizer.decode(task.prompt) if echo",
     T + "echo_of_a_prompt_that_ends_within_a_character_shows_the_character"),
]  # fmt: skip
