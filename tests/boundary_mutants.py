"""Faults that once passed every test: each is now seen by a law at its boundary."""

T = "test_boundaries.py::test_"
SPECIAL = """        if special and not content and not self.skip_special:
            content = name.encode()
"""
START = """        if self.at_start and content:
            self.at_start = False
            content = content[1:] if name.startswith(SPACE) else content
"""
SAME = "        forget_after(talk, common_length(before, talk.tokens))\n"
LINES = '"\\n".join(part for part in (system, message, answer) if part is not None)'

# fmt: off
MUTANTS = [
    ("decoding/stopping.py", "max(map(len, needles)) + len(last) - 1",
     "max(map(len, needles))", T + "a_string_that_ends_in_the_middle_of_the_last_token_is_seen"),
    ("decoding/beam.py", 'rules.early_stopping == "never" and rules.length_penalty > 0',
     'rules.early_stopping == "never"',
     "test_testing.py::test_own_samplers_pass[beam_search]"),
    ("decoding/guided.py", "mask[self.eos] = ACCEPT", "mask[self.eos] |= ACCEPT",
     T + "an_end_token_whose_text_fits_the_format_comes_only_at_its_end"),
    ("cli/chat.py", SAME, "", T + "a_turn_that_fails_leaves_the_conversation_as_it_was"),
    ("cli/chat.py", "talk.tokens, talk.dialog = before, dialog", "pass",
     T + "a_turn_that_fails_leaves_the_conversation_as_it_was"),
    ("text/turns.py", LINES, LINES.replace("(part for", "(part.strip() for"),
     T + "plain_turns_keep_their_white_space"),
    ("text/chat.py", "known = all(mark in", "known = any(mark in",
     T + "a_form_is_detected_by_all_of_its_marks"),
    ("text/tokenizer.py", START + SPECIAL, SPECIAL + START,
     T + "the_shown_name_of_a_special_token_does_not_end_the_start"),
    ("files/npz.py", "if start + info.file_size > len(data):", "if False:",
     T + "a_member_that_begins_too_late_is_truncated"),
    ("files/checkpoint.py",
     '        _json_object(archive.files, "generation_config.json")  # is one',
     "        # is one", T + "a_generation_config_that_is_not_an_object_is_named_with_its_file"),
]
# fmt: on
