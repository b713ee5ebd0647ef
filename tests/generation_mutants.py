"""Faults of the one face for generation, each of which the named test must notice.

(file, old text, new text, test).
"""

TASK, STOPPING = "generation/task.py", "decoding/stopping.py"
SPECULATIVE = "decoding/speculative.py"
OPTIONS, LIMITS, GENERATE = (
    f"generation/{n}.py" for n in ("options", "limits", "generate")
)
CLI, C = "cli/generate.py", "test_cli.py::test_"
T = "test_generation.py::test_"

MUTANTS = [
    # a draft goes on after the end of a format, where nothing fits
    (SPECULATIVE, "if draft.stop(guessed[start:]):", "if draft.stop([]):",
     T + "draft_guesses_nothing_after_the_end_of_a_format"),
    # the text keeps the end token, and so leaves its own format
    (TASK, '"" if token in self.silent else self', "self",
     T + "draft_guesses_nothing_after_the_end_of_a_format"),
    # what comes after the stop string is shown, if it comes in another piece
    (STOPPING, 'self.held, self.ended = "", True', 'self.held = ""',
     "test_decoding_stopping.py::"
     "test_nothing_is_shown_after_the_stop_string_not_even_half_a_character"),
    # bytes that are no text are trimmed as if they were U+FFFD
    (TASK, 'stops=reason == "stop"', "stops=True",
     "test_decoding_stopping.py::test_a_stop_string_is_bytes_that_came"),
    # the echo of a prompt that ends within a character
    (TASK, '"".join(map(self.decoder.push, task.job.prompt)) if echo',
     "tokenizer.decode(task.job.prompt) if echo",
     T + "echo_of_a_prompt_that_ends_within_a_character_shows_the_character"),
    # llama.cpp divides by the temperature last
    (OPTIONS, 'shape.sort(key=[*places, "temperature"].index)',
     'shape.sort(key=["temperature", *places].index)',
     T + "order_of_the_steps_follows_the_config"),
    # mirostat after other truncation
    (OPTIONS, "if self.mirostat:", "if self.mirostat == 3:",
     T + "order_of_the_steps_follows_the_config"),
    # truncation although no token is drawn
    (OPTIONS, "if not self.do_sample:", "if not shape:",
     T + "order_of_the_steps_follows_the_config"),
    # a bias that float32 cannot hold
    (LIMITS, "is_key(k) and (b == -math.inf or MODERATE.fits(b))",
     "is_key(k) and (b == -math.inf or NOT_NEGATIVE.fits(abs(b)))",
     T + "bias_that_would_overflow_is_refused_with_its_range"),
    # of several prompts, another is named
    (GENERATE, "prompt {error.row // copies}", "prompt {error.row // copies - 1}",
     T + "emptied_row_is_named_with_the_options_that_emptied_it"),
    # both ways to give a length hold together
    (OPTIONS, 'options = {**options, "max_new_tokens": None}', "options = {**options}",
     T + "options_may_be_given_by_name_as_in_transformers"),
    # the seed that is told is not the one that was drawn with
    ("cli/options.py", "return np.random.default_rng(options.seed)",
     "return np.random.default_rng()",
     C + "seed_that_was_not_given_is_told_and_repeats_the_text"),
    # an error stands after the text on its line
    (CLI, 'show("" if pending else "\\n")', 'show("")',
     C + "what_goes_wrong_in_a_text_begins_a_new_line"),
    # the cache of one text goes to all that branch from it
    ("decoding/follower.py", "if alone and len(self.rows) == 1:",
     "if len(self.rows) == 1:",
     T + "second_opinion_on_texts_that_branch_is_that_of_each_text_alone"),
    # tokens that were removed go on
    ("decoding/beam.py", "        if total[i] > -np.inf\n", "        if True\n",
     T + "no_token_is_made_up_where_all_are_removed"),
]  # fmt: skip
