"""Faults of pages, of the scheduler, and of the engine."""

PAGES, SCHEDULER = "test_serving_pages.py::test_", "test_serving_scheduler.py::test_"
ENGINE, BEAMS = "test_serving_engine.py::test_", "test_serving_beams.py::test_"

EXAMPLE = PAGES + "vllms_example_of_ten_blocks_comes_out_number_for_number"
NAMES = PAGES + "a_name_stands_for_the_whole_text_up_to_the_end_of_the_page"
FOUND = PAGES + "pages_are_found_up_to_the_first_that_is_not_there"
DEALT = PAGES + "a_free_page_keeps_its_name_until_it_is_dealt_out"
COPIES = (
    PAGES + "a_text_that_writes_into_a_shared_page_gets_a_copy_and_the_last_holder_none"
)
REST = PAGES + "pages_that_are_found_while_free_are_not_there_for_the_rest"
WORLD = PAGES + "whatever_texts_do_nothing_leaks_and_nobody_reads_what_is_not_his"

EVERY_STEP = SCHEDULER + "whatever_comes_every_text_ends_and_every_page_is_free_again"
LATEST = SCHEDULER + "preempted_texts_are_the_latest_and_wait_in_front"
TURNS = SCHEDULER + "a_long_prompt_delays_nobody_who_decodes"
WATERMARK = SCHEDULER + "a_watermark_holds_back_the_second_text_but_never_the_first"
AGAIN = SCHEDULER + "what_preemption_took_is_computed_again_and_counted"

ALONE = ENGINE + "in_a_crowd_every_text_is_that_of_the_request_alone"
ONCE = ENGINE + "nothing_is_computed_twice_but_what_preemption_took"
OPTION = ENGINE + "every_option_means_what_it_means_alone"
ERROR = ENGINE + "an_error_ends_one_text_and_no_other"
ABORT = ENGINE + "an_aborted_request_gives_its_pages_back_wherever_it_is"
PROMPT = ENGINE + "logprobs_of_a_prompt_are_those_of_its_text_though_others_computed_it"
GUESSES = ENGINE + "guesses_are_those_made_alone_and_their_pages_are_given_back"
SAMPLES = ENGINE + "samples_of_one_prompt_compute_it_once_and_share_its_pages"

MUTANTS = [
    # ---- pages
    ("serving/pages.py", "every.reshape(-1)", "every.T.reshape(-1)",
     PAGES + "a_position_lies_on_its_page"),
    ("serving/pages.py", "return slice(first, first + n) if run else places",
     "return places", PAGES + "a_run_of_pages_is_read_without_a_copy"),
    ("serving/pages.py", "array[:, :, :, new] =", "array[0, :, :, new] = array[0, :, :, page]  #",
     PAGES + "a_copied_page_is_equal_in_all_layers_and_no_other_page_changes"),
    ("serving/pages.py", "for array in (pool.k, pool.v)", "for array in (pool.k,)",
     PAGES + "a_copied_page_is_equal_in_all_layers_and_no_other_page_changes"),
    # ---- names
    ("serving/blocks.py", "sha256(name + page.tobytes())", "sha256(page.tobytes())", NAMES),
    ("serving/blocks.py", "sha256(salt.encode())", 'sha256(b"")', NAMES),
    ("serving/blocks.py", 'dtype="<i8"', 'dtype="<i8").astype("<i4"', NAMES),
    ("serving/blocks.py", "len(tokens) - page_size + 1, page_size", "len(tokens), page_size", NAMES),
    ("serving/blocks.py", "names[: most // blocks.page_size]", "names", FOUND),
    ("serving/blocks.py", "        if page is None:\n            break",
     "        if page is None:\n            continue", FOUND),
    ("serving/blocks.py", "        if name not in blocks.page_of:", "        if True:",
     PAGES + "of_two_equal_pages_the_first_keeps_the_name"),
    ("serving/blocks.py", "del blocks.page_of[blocks.name_of.pop(page)]",
     "blocks.name_of.pop(page)", DEALT),
    ("serving/blocks.py", "        if page in blocks.name_of:", "        if False:", DEALT),
    # ---- taking and giving back
    ("serving/blocks.py", "reversed(table)", "table", EXAMPLE),
    ("serving/blocks.py", "islice(blocks.free, n)", "sorted(blocks.free)[:n]", EXAMPLE),
    ("serving/blocks.py", "    fork(blocks, hits)\n", "", EXAMPLE),
    ("serving/blocks.py", "        blocks.free.pop(page, None)\n", "", EXAMPLE),
    ("serving/blocks.py", " - sum(page in blocks.free for page in hits)", "", REST),
    ("serving/blocks.py", "need + spare > left", "need > left", REST),
    ("serving/blocks.py", "> 1]", "> 9]", COPIES),
    ("serving/blocks.py", "> 1]", ">= 1]", COPIES),
    ("serving/blocks.py", "        blocks.held[pages[i]] -= 1\n", "", WORLD),
    ("serving/blocks.py", "copies.append((pages[i], page))", "copies.append((page, pages[i]))",
     COPIES),
    ("serving/blocks.py", "if len(shared) + new > len(blocks.free):", "if new > len(blocks.free):",
     PAGES + "growth_that_does_not_fit_changes_nothing"),
    ("serving/blocks.py", "drop(blocks, table[pages:])", "pass",
     PAGES + "what_guesses_took_is_given_back"),
    # ---- the scheduler
    ("serving/scheduler.py", "int(text.decodes and text.missing > 0)", "0", TURNS),
    ("serving/scheduler.py", "- portions[i], left)", "- portions[i], limits.tokens)", TURNS),
    ("serving/scheduler.py", "min(text.missing, most)", "text.missing", TURNS),
    ("serving/scheduler.py", "copied(state.blocks)", "state.blocks", EVERY_STEP),
    ("serving/scheduler.py", "plan if plan.preempted else _admit(plan, limits)",
     "_admit(plan, limits)",
     SCHEDULER + "nobody_is_admitted_in_a_step_that_preempts_though_he_would_fit"),
    ("serving/scheduler.py", "texts[running] = _preempted(texts[running], blocks)",
     "texts.append(_preempted(texts.pop(running), blocks))", LATEST),
    ("serving/scheduler.py", "texts[running] = _preempted(texts[running], blocks)",
     "texts[i] = _preempted(texts[i], blocks)", LATEST),
    ("serving/scheduler.py", "    drop(blocks, text.table)\n    return text._replace(table=(), ",
     "    drop(blocks, text.table)\n    return text._replace(", EVERY_STEP),
    ("serving/scheduler.py", "    drop(blocks, text.table)\n    return text", "    return text",
     EVERY_STEP),
    ("serving/scheduler.py", "plan.copies.extend(grown[1])", "pass", ALONE),
    ("serving/scheduler.py", "texts[running].width <= places", "places > 0",
     SCHEDULER + "samples_of_one_prompt_need_a_place_each"),
    ("serving/scheduler.py", "len(blocks.held)) if running else 0", "len(blocks.held))", WATERMARK),
    ("serving/scheduler.py", "            break\n        found", "            running += 1\n            continue\n        found",
     SCHEDULER + "nobody_is_admitted_past_one_that_does_not_fit"),
    ("serving/scheduler.py", "text.decided - 1) if", "text.decided) if",
     SCHEDULER + "one_that_must_compute_all_takes_nothing_from_others"),
    ("serving/scheduler.py", "if text.reuse else ()", "if True else ()",
     SCHEDULER + "one_that_must_compute_all_takes_nothing_from_others"),
    ("serving/scheduler.py", "table=table, computed=found)", "table=table)", EVERY_STEP),
    ("serving/scheduler.py", "limits.chunk or limits.tokens, left)", "limits.chunk or limits.tokens)",
     EVERY_STEP),
    ("serving/scheduler.py", "max(0, min(end, text.again) - start)", "0", AGAIN),
    ("serving/scheduler.py", "again=max(text.again, text.computed)", "again=0", AGAIN),
    ("serving/scheduler.py", "text.again if end < text.again else 0", "text.again",
     SCHEDULER + "a_guess_in_the_place_of_a_lost_one_is_not_computed_again"),
    ("serving/scheduler.py", "                fork(state.blocks, text.table)", "                pass",
     EVERY_STEP),
    ("serving/scheduler.py", "sum(runs[: state.running])", "state.running",
     SCHEDULER + "texts_leave_wherever_they_stand"),
    # ---- the pass
    ("serving/engine.py", "        copy_page(pool, source, target, P)", "        pass", ALONE),
    ("serving/engine.py", "known[start:end]", "known[:n]", ALONE),
    ("serving/engine.py", "places(tables[id], end, P)", "places(sorted(tables[id]), end, P)", ALONE),
    ("serving/engine.py", "max(start, min(texts[id].seen, end))", "max(start, end - 1)", ALONE),
    ("serving/engine.py", "max(start, min(texts[id].seen, end))", "start", SAMPLES),
    ("serving/engine.py", "self.state = stopped(self.state)", "pass",
     ENGINE + "an_error_of_the_model_loses_no_request"),
    ("serving/engine.py", "        self._events += self._read_notes()",
     "        self._events = self._read_notes()",
     ENGINE + "an_error_of_the_model_loses_no_request"),
    # ---- what becomes of it
    ("serving/writing.py", "len(self.logits) > len(self.guessed)", "bool(self.logits)", ALONE),
    ("serving/writing.py", "if text.seen >= len(text.tokens):", "if True:", ALONE),
    ("serving/writing.py", "rows, text.new, text", "rows, text.tokens, text", ALONE),
    ("serving/writing.py", "text.last - len(text.tokens) - 1)", "text.last - len(text.tokens))",
     GUESSES),
    ("decoding/common.py", "[[*self.prompt, *new]]", "[new]", OPTION),
    ("serving/writing.py", "given[text.seen]", "given[text.seen - 1]", PROMPT),
    ("serving/writing.py", "shower.push(token, reason)", "shower.push(token)",
     ENGINE + "the_pieces_of_a_text_come_as_they_do_alone"),
    ("serving/writing.py", "text.begun, rows = True,", "rows =", PROMPT),
    ("serving/requests.py", "begun(task._replace(row=choice), child,", "begun(task._replace(row=choice), rng,",
     ALONE),
    ("serving/requests.py", "begun(task._replace(row=choice), child,", "begun(task, child,",
     OPTION),
    ("serving/requests.py", "seen=0 if config.prompt_logprobs else", "seen=", PROMPT),
    ("serving/requests.py", '!= "prompt_lookup_num_tokens"]', 'in ("num_beams", "penalty_alpha")]',
     ENGINE + "what_cannot_be_served_is_refused_in_one_line"),
    ("serving/requests.py", "if len(task.job.prompt) >= room:", "if len(task.job.prompt) > room:",
     ENGINE + "what_cannot_be_served_is_refused_in_one_line"),
    ("serving/engine.py", "reuse = text.prompt_logprobs is None", "reuse = True", PROMPT),
    ("serving/engine.py", "chain(prompt, P, text.salt)", "chain(prompt, P)",
     ENGINE + "only_requests_of_one_salt_share_pages"),
    ("serving/engine.py", "names[:sure]", "names", ALONE),
    ("serving/engine.py", "computed = min(known.computed, len(text.tokens) - 1)",
     "computed = known.computed", ALONE),
    ("serving/engine.py", "        table = shrink(self.state.blocks, known.table, computed)",
     "        table = known.table", GUESSES),
    ("serving/engine.py", "        if text.others and text.logits:", "        if False:", ALONE),
    ("serving/engine.py", "other.logits, other.seen = list(text.logits), text.seen",
     "other.logits, other.seen = text.logits, text.seen", ALONE),
    ("serving/engine.py", "            self._leave(text, reason)\n        return events",
     "            pass\n        return events", ALONE),
    ("serving/engine.py", "for t in (text, *text.others)", "for t in (text,)", ABORT),
    ("serving/engine.py", "        self._leave(text, reason)\n        self._finished",
     "        self._finished", ABORT),
    ("serving/engine.py", "        except Exception as error:", "        except NameError as error:",
     ERROR),
    ("serving/engine.py", "        except NothingLeft as error:", "        except NameError as error:",
     ERROR),
    ("serving/engine.py", 'self._sums["prefix_hits"] += found', "pass", ONCE),
    # ---- beams, and answers
    ("serving/beams.py", "grow(blocks, table, positions - 1, positions)",
     "grow(blocks, table, positions, positions)",
     BEAMS + "a_step_forks_the_tables_of_the_parents_before_it_drops_any"),
    ("serving/beams.py", "tables[parent]) for parent in parents", "tables[0]) for parent in parents",
     BEAMS + "beams_on_pages_find_what_beam_search_finds"),
    ("serving/beams.py", "    for table in tables:\n        drop(blocks, table)\n    copies", "    copies",
     BEAMS + "beams_on_pages_find_what_beam_search_finds"),
    ("serving/beams.py", "                copy_page(pool, source, target, P)", "                pass",
     BEAMS + "beams_on_pages_find_what_beam_search_finds"),
    ("serving/beams.py", "tables, beams, S - 1, P", "tables, beams, S, P",
     BEAMS + "beams_on_pages_find_what_beam_search_finds"),
    ("serving/beams.py", "need > len(blocks.free)", "False",
     BEAMS + "a_search_that_may_not_fit_is_refused_and_touches_nothing"),
    ("serving/collect.py", "texts = ranked(texts)", "texts = ranked(texts)[::-1]",
     OPTION),
    ("serving/collect.py", "left and len(numbers) < ahead", "left",
     ENGINE + "answers_come_for_every_request_and_the_list_is_read_as_needed"),
]  # fmt: skip
