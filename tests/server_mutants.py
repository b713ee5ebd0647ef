"""Faults of the server: in OpenAI's words, and in the thread that owns the model."""

PROTOCOL, DESK = "test_serving_protocol.py::test_", "test_serving_desk.py::test_"
ONE_TEXT = PROTOCOL + "plain_and_streamed_and_generate_are_one_text"
ECHO = PROTOCOL + "echoed_logprobs_are_those_of_the_text"
REFUSED = PROTOCOL + "what_cannot_be_meant_is_refused_by_name"
REASON = PROTOCOL + "the_reason_for_an_end_is_one_of_openais"
DEFAULTS = PROTOCOL + "openais_defaults_are_kept"
USAGE = PROTOCOL + "a_stream_ends_with_what_it_took_if_asked"
CHAT = PROTOCOL + "a_conversation_is_a_chat_completion"
NAMES = PROTOCOL + "every_token_has_a_name_of_its_own"
BOS = PROTOCOL + "text_begins_with_the_first_token_and_ids_do_not"
COMPANY = PROTOCOL + "a_text_does_not_depend_on_its_company"
OFFSETS = PROTOCOL + "offsets_tell_where_tokens_begin_in_the_text"
TIMES = DESK + "flops_and_times_are_those_of_the_work"

MUTANTS = [
    # ---- what is asked
    ("serving/fields.py", '"top_k": 0,', '"top_k": 50,', DEFAULTS),
    ("serving/fields.py", '"include_stop_str_in_output": False', '"include_stop_str_in_output": True',
     PROTOCOL + "a_stop_string_is_never_shown"),
    ("serving/fields.py", 'greedy = given["temperature"] == 0', "greedy = False", ONE_TEXT),
    ("serving/fields.py", "elif name not in IGNORED and value not in", "elif name in OPTIONS and value not in", REFUSED),
    ("serving/fields.py", '1 if greedy else given["n"]', 'given["n"]',
     PROTOCOL + "a_text_without_chance_is_told_as_often_as_asked"),
    ("serving/fields.py", "if value is not None}\n    given", "}\n    given",
     PROTOCOL + "what_is_null_was_not_given"),
    ("serving/protocol.py", "encode_prompt(served.model, one, config.allowed_special)",
     "[1] * isinstance(one, tuple) + encode_prompt(served.model, one, config.allowed_special)", BOS),
    ("serving/protocol.py", "if len(tokens) >= served.longest:", "if len(tokens) > served.longest:", REFUSED),
    ("serving/protocol.py", "max(1, served.longest - len(prompt))", "16",
     PROTOCOL + "a_conversation_may_go_on_to_the_end_of_the_context"),
    ("serving/protocol.py", '"eos_token_id": served.ends', '"eos_token_id": served.eos',
     PROTOCOL + "an_answer_ends_where_the_turn_does"),
    ("serving/protocol.py", "status=404,", "status=400,", PROTOCOL + "another_model_does_not_exist"),
    ("serving/protocol.py", '"system" if role == "developer" else role', "role",
     PROTOCOL + "messages_may_be_parts_and_the_developer_is_the_system"),
    ("serving/protocol.py", 'allowed_special="all"', "allowed_special=()",
     PROTOCOL + "tokens_are_told_and_read_back"),
    ("serving/protocol.py", "None if special else False", "None",
     PROTOCOL + "tokens_are_told_and_read_back"),
    ("serving/protocol.py", "seed % SEEDS", "abs(seed)",
     PROTOCOL + "every_whole_number_is_a_seed_of_its_own"),
    # ---- what is answered
    ("serving/answers.py", '{"eos", "stop", "format"}', '{"stop", "format"}', REASON),
    ("serving/answers.py", '("stop" if ended else "length")', "event.reason", REASON),
    ("serving/answers.py", "told + entries,", "(told + entries)[1:] + [None],", ECHO),
    ("serving/answers.py", "pairs = [*entry.top, (entry.token, entry.logprob)]", "pairs = entry.top", ECHO),
    ("serving/answers.py", "    if ask.silent:\n", "    if False:\n", ECHO),
    ("serving/answers.py", "number * max(ask.n, ask.written)", "number * ask.written",
     PROTOCOL + "texts_of_several_prompts_are_numbered_one_after_the_other"),
    ("serving/answers.py", "copies = ask.n if ask.written == 1 else 1", "copies = 1",
     PROTOCOL + "a_text_without_chance_is_told_as_often_as_asked"),
    ("serving/answers.py", "key=lambda ps: -sum", "key=lambda ps: sum",
     PROTOCOL + "the_best_of_several_texts_are_those_of_generate"),
    ("serving/answers.py", '{"choices": [], "usage"', '{"choices": [{"index": 0}], "usage"', USAGE),
    ("serving/answers.py", 'spent = {"usage": None} if telling.ask.usage else {}', "spent = {}", USAGE),
    ("serving/answers.py", "telling.completion_tokens += len(tokens)", "telling.completion_tokens += 1", ECHO),
    ("serving/answers.py", r'{as_json(data)}\n\n"', r'{as_json(data)}\n"', ONE_TEXT),
    ("serving/answers.py", "yield sse(failure(error))\n", "yield sse(failure(error))\n        yield DONE\n",
     PROTOCOL + "a_stream_ends_once_after_an_error_too"),
    ("serving/answers.py", "    if part.first:\n", "    if part.text:\n", CHAT),
    ("serving/answers.py", "self.length += len", "self.length = len", OFFSETS),
    ("serving/answers.py", "continuing=not echo)", "continuing=True)", OFFSETS),
    ("serving/answers.py", "if math.isfinite(logprob) else LEAST", "", NAMES),
    ("serving/answers.py", "{type(error).__name__}", "{error}",
     PROTOCOL + "a_stream_ends_once_after_an_error_too"),
    ("serving/offered.py", "if c and c not in taken)", "if c)", NAMES),
    ("serving/offered.py", 'key=lambda i: tokenizer.piece(i).startswith("<0x")', "key=lambda i: i", NAMES),
    # ---- who gets it
    ("serving/desk.py", "for event in self._early.pop(id, []):", "for event in []:",
     DESK + "an_event_that_comes_before_its_request_was_noted_is_kept"),
    ("serving/desk.py", 'elif event.reason != "abort":', "else:",
     DESK + "what_nobody_waits_for_is_kept_unless_it_was_given_up"),
    ("serving/desk.py", "                del self._waiting[event.id]", "                pass",
     DESK + "a_request_that_is_given_up_holds_no_page"),
    ("serving/desk.py", "            self.engine.abort(id)\n", "",
     DESK + "a_step_that_fails_is_told_to_those_who_wait_and_to_no_others"),
    ("serving/desk.py", "waiting.arrived if before is None else before", "waiting.arrived", TIMES),
    ("serving/desk.py", "        with self.flops:\n", "        if True:\n", TIMES),
    ("serving/metrics.py", "import bisect_left", "import bisect_right as bisect_left",
     DESK + "a_histogram_counts_all_that_is_at_most_a_bound"),
    ("serving/metrics.py", "        count += n\n", "        count = n\n",
     DESK + "a_histogram_counts_all_that_is_at_most_a_bound"),
    ("serving/metrics.py", 'label = \'model_name="\' + escaped(model)', 'label = \'model_name="\' + model', TIMES),
    # ---- the command
    ("cli/serve.py", "socket.IPPROTO_TCP\n", "0\n",
     "test_cli_serve.py::test_a_taken_port_is_one_line_and_small_answers_leave_at_once"),
    ("cli/serve.py", "and not low <= value < math.inf", "and value < low",
     "test_cli_serve.py::test_sizes_out_of_range_are_misuse"),
]  # fmt: skip
