"""Faults of the page of a generation, each with the test that must notice it."""

E = "test_explain.py::test_"
DRAWS = E + "draws_are_the_numbers_of_the_seed_and_fall_on_their_token[six processors]"
COST = E + "cost_is_what_a_counter_counts[guidance]"
STEPS = E + "steps_of_the_pipeline_are_those_that_are_on_in_its_order"
ROUNDS = E + "rounds_are_those_that_generate_counts[early exit]"
KEPT = E + "a_guess_is_kept_by_the_numbers_on_the_page"
WAY = E + "way_through_the_tree_leads_to_the_text_and_its_score"

MUTANTS = [
    # ---- what observers see
    ("generation/pipeline.py", '    note("process", logits)\n', "",
     E + "probabilities_are_those_of_generate[greedy]"),
    ("generation/pipeline.py", '        note(f"process.{name}", logits)',
     '    note(f"process.{name}", logits)', STEPS),
    ("decoding/sample.py", '    note("u", u)', '    note("u", 1 - u)', DRAWS),
    ("decoding/rejection.py", '    note("q", q)\n', "", KEPT),
    ("decoding/rejection.py", 'note("u", np.array([u]))', 'note("u", np.array([u / 2]))', KEPT),
    ("decoding/beam.py", '    tell("beams", beams)\n    cache', "    cache",
     WAY + "[beams]"),
    ("decoding/constrained_beam.py",
     '        tell("ended", [c.beam for c in candidates if c.reason is not None])\n', "",
     E + "forced_token_is_shown_when_it_ends_the_text"),
    # ---- how they are put together
    ("explain/watch.py", "len(decision.stages) <= self.steps", "False",
     E + "second_opinion_is_told_apart"),
    ("explain/watch.py", "a / a.sum(axis=-1, keepdims=True)", "a",
     E + "attention_is_that_of_the_whole_text_at_once"),
    ("explain/watch.py", "            h, t = h + K * G, 0", "            h, t = h + K, 0",
     E + "weights_of_blocks_are_put_together[blocks]"),
    ("explain/watch.py", "            b, h = b + rows, 0", "            b, h = b, 0",
     E + "weights_of_blocks_are_put_together[rows]"),
    ("explain/watch.py", "(self.first + parent, *rest)", "(parent, *rest)",
     WAY + "[groups]"),
    ("explain/watch.py", "here.count(Kind(", "(Kind(", COST),
    ("explain/collect.py", "own = not drafts or read < begin or checking",
     "own = not drafts or read < begin", ROUNDS),
    ("explain/collect.py", "row = rows[new] if new > 0 and rows else 0", "row = 0",
     E + "the_last_layer_says_what_the_model_says[beams]"),
    ("explain/collect.py", "if new < len(first) else every",
     "if new <= len(first) - 1 and new else every",
     E + "text_goes_on_from_a_token_that_is_put_in"),
    ("explain/search.py", "before is None or p in before", "True",
     E + "way_is_told_from_that_of_another_text_with_the_same_word"),
    # ---- numbers
    ("explain/choices.py", "(ends - p) / ends[-1]", "ends / ends[-1]", E + "line_is_that_of_draw"),
    ("explain/choices.py", "        p = residual(p, q)\n", "",
     E + "a_guess_that_is_thrown_away_is_drawn_again_from_what_the_draft_lacked"),
    ("explain/choices.py", "kept = float(shares(before)", "kept = float(shares(now)",
     E + "choice_shows_the_chosen_token_however_unlikely"),
    ("explain/choices.py", "{*map(int, top(first, SHOWN)), *map(int, left), *more}",
     "{*map(int, top(first, SHOWN)), *map(int, left)}",
     E + "choice_shows_the_chosen_token_however_unlikely"),
    ("explain/layers.py", "normed = rms_norm(stream, model.norm, model.config.rms_norm_eps)",
     "normed = stream", E + "the_last_layer_says_what_the_model_says[greedy]"),
    ("explain/layers.py", "np.rint(row * STEPS)", "np.floor(row * STEPS)",
     E + "attention_is_that_of_the_whole_text_at_once"),
    ("explain/layers.py", "first, size = first + 1, size[1:]", "first, size = first + 1, size[2:]",
     E + "attention_that_is_too_large_keeps_the_last_positions"),
    # ---- the page
    ("explain/page.py", r'carried.replace("<", "\\u003c")', "carried.strip()",
     E + "a_text_cannot_break_out_of_the_page"),
    ("explain/told.py", "{int(k): float(v) for k, v in bias.items()}", "dict(bias)",
     E + "options_survive_the_page[options0]"),
    ("explain/told.py", 'named["max_new_tokens"] = config.max_new_tokens or', 'named["x"] = 0 or',
     E + "the_command_on_the_page_writes_the_same_text"),
]  # fmt: skip
