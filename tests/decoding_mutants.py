"""Faults of the searches, each of which the conformance kit must notice.

(file, old text, new text, test).  Many were somebody's bug once: a draft whose
distribution is not the one it was drawn from, the prompt counted in the length
penalty, an end token inside a block of guesses overlooked.
"""

COMMON = "decoding/common.py"
BEAM, GROUPS = "decoding/beam.py", "decoding/group_beam.py"
REJECTION, SPECULATIVE = "decoding/rejection.py", "decoding/speculative.py"
SAMPLE, STOPPING = "decoding/sample.py", "decoding/stopping.py"
LOOKUP = "decoding/prompt_lookup.py"
SEARCH, CONTRAST = "decoding/contrastive_search.py", "decoding/contrastive_decoding.py"
DOLA = "decoding/dola.py"

FAULTS = {
    "beam_search": [
        # too few candidates for as many beams to go on
        (BEAM, "return max(2, 1 + self.n_eos) * self.num_beams", "return self.num_beams"),
        # the length penalty with the wrong sign
        (BEAM, "beam.score / len(beam.tokens) ** self.length_penalty",
         "beam.score * len(beam.tokens) ** self.length_penalty"),
        # the token that ends a text not counted
        (BEAM, "beam.score / len(beam.tokens) ** self.length_penalty",
         "beam.score / max(len(beam.tokens) - 1, 1) ** self.length_penalty"),
        # the prompt counted in the length penalty
        (BEAM, "        finished = ranked(finished + ended)[: rules.num_beams]\n",
         "        n = len(job.prompt)\n"
         "        share = [len(h.tokens) / (len(h.tokens) + n) for h in ended]\n"
         "        ended = [h._replace(score=h.score * s**rules.length_penalty)\n"
         "                 for h, s in zip(ended, share)]\n"
         "        finished = ranked(finished + ended)[: rules.num_beams]\n"),
        # a text may end at any rank
        (BEAM, "zip(candidates[: rules.num_beams], reasons)", "zip(candidates, reasons)"),
        (COMMON, 'key=attrgetter("score"), reverse=True', 'key=attrgetter("score")'),
        # the first finished text ends the search
        (BEAM, "    if len(finished) < rules.num_beams:\n", "    if not finished:\n"),
        (BEAM, 'may_rise = rules.early_stopping == "never" and rules.length_penalty > 0',
         "may_rise = False"),
        (BEAM, "<= finished[-1].score", "<= finished[0].score"),
        (BEAM, "if rules.early_stopping is True:", "if rules.early_stopping is None:"),
        # beams exchange their texts, the cache keeps the old ones
        (BEAM, "array[:, :n, :, :S] = array[:, rows, :, :S]",
         "array[:, :n, :, :S] = array[:, :n, :, :S]"),
        # logits added up that were never normalised
        (BEAM, "job.process(histories(job, beams), log_softmax(logits))",
         "job.process(histories(job, beams), logits)"),
        # all beams begin with the same text
        (BEAM, "return [Beam([], 0.0, 0)], cache", "return [Beam([], 0.0, 0)] * 2, cache"),
        (BEAM, "ranked(finished + ended)[: rules.num_beams]\n        if",
         "ranked(ended)[: rules.num_beams]\n        if"),
        (COMMON, '("length" if len(tokens) >= self.room else None)',
         '("length" if len(tokens) > self.room else None)'),
        (BEAM, "float(total[i]), int(i // V))", "float(total[i]), int(i % len(beams)))"),
    ],
    "group_beam_search": [
        # groups attract each other
        (GROUPS, "log_softmax(rows) - cost", "log_softmax(rows) + cost"),
        # only the group just before counts
        (GROUPS, "            taken += [", "            taken = ["),
        # a token costs once, however many beams took it
        (GROUPS, "cost = diversity_penalty * np.bincount(taken,",
         "cost = diversity_penalty * np.bincount(sorted(set(taken)),"),
    ],
    "rejection": [
        # u = 0 lets a token of probability 0 pass
        (REJECTION, "bool(u * q[x] < p[x])", "bool(u * q[x] <= p[x])"),
        # kept with p instead of p / q
        (REJECTION, "bool(u * q[x] < p[x])", "bool(u < p[x])"),
        # the replacement drawn from p instead of what p has more
        (REJECTION, "draw(residual(p, q), _uniform(rng))", "draw(p, _uniform(rng))"),
        (REJECTION, "more = np.maximum(p - q, 0)", "more = np.abs(p - q)"),
        (REJECTION, "more = np.maximum(p - q, 0)", "more = np.maximum(q - p, 0)"),
    ],
    "speculative": [
        # q before processing, though the guess was drawn after it
        (SPECULATIVE,
         "            probs.append(softmax(logits))\n"
         "            guessed.append(int(draw(probs[-1], draft.rng.random())))",
         "            probs.append(softmax(logits_after([guessed])[0]))\n"
         "            guessed.append(int(draw(softmax(logits), draft.rng.random())))"),
        # guesses made greedily, but q as if they had been drawn
        (SPECULATIVE, "guessed.append(int(draw(probs[-1], draft.rng.random())))",
         "guessed.append(int(logits.argmax()))"),
        # the target's distribution without the guesses in its history
        (SPECULATIVE, "job.shaped(new + tokens, logits[i])",
         "job.shaped([], logits[i])"),
        # an end token inside the block is overlooked
        (SPECULATIVE, "if reason is not None or tokens[-1] != x:", "if tokens[-1] != x:"),
        # guesses that failed stay in the cache
        (SPECULATIVE, "cache.length[0] = len(prompt) + len(new) - 1",
         "cache.length[0] = len(prompt) + len(new) - len(tokens) + len(draft.tokens)"),
        (SPECULATIVE, "job.shaped(new + tokens, logits[i])",
         "job.shaped(new + tokens, logits[max(i - 1, 0)])"),
        (SPECULATIVE, "x is None else draft.probs[i]", "x is None else draft.probs[0]"),
    ],
    "greedy_search": [
        (SAMPLE, "chosen = greedy(logits)", "chosen = logits[:, ::-1].argmax(axis=-1)"),
        (STOPPING, "tokens and tokens[-1] in ids", "tokens and tokens[0] in ids"),
    ],
    "stop_strings": [
        # a string that begins far back in a long token's neighbour
        (STOPPING, "max(map(len, needles)) + len(last) - 1", "max(map(len, needles)) - 1"),
        # the string must end the text
        (STOPPING, "any(needle in tail for", "any(tail.endswith(needle) for"),
    ],
    "stop_output": [
        # the stop string is shown
        (STOPPING, "text[: min(ends)[1]]", "text[: min(ends)[0]]"),
        # the string that begins first, not the one that ends first
        (STOPPING, "ends = [(text.find(s) + len(s), text.find(s))",
         "ends = [(text.find(s), text.find(s))"),
        # a character too few is held back
        (STOPPING, "min(len(string) - 1, len(text))",
         "min(len(string) - 2, len(text))"),
        (STOPPING, "keep = max((", "keep = min(("),
    ],
    "prompt_lookup": [
        (LOOKUP, "start = int(found[0]) + n", "start = int(found[-1]) + n"),
        # the shortest match instead of the longest
        (LOOKUP, "range(min(max_matching_ngram_size, len(ids) - 1), 0, -1)",
         "range(1, min(max_matching_ngram_size, len(ids) - 1) + 1)"),
        # the end of the text found in itself
        (LOOKUP, "sliding_window_view(ids[:-1], n)", "sliding_window_view(ids, n)"),
        (LOOKUP, "ids[start : start + most]", "ids[start : start + most + 1]"),
    ],
    "contrastive_search": [
        (SEARCH, "p - penalty_alpha * likeness", "p + penalty_alpha * likeness"),
        (SEARCH, '"likeness").max(axis=-1)', '"likeness").mean(axis=-1)'),
        (SEARCH, "score = (1 - penalty_alpha) * p", "score = p"),
    ],
    "contrastive_decoding": [
        (CONTRAST, "expert + beta * difference", "expert - beta * difference"),
        (CONTRAST, "(expert >= least)", "(expert > least)"),
    ],
    "dola": [
        (DOLA, "p - q[chosen])", "p + q[chosen])"),
        (DOLA, "np.where(p < p.max() + math.log(PLAUSIBLE)", "np.where(p < p.min()"),
    ],
}  # fmt: skip

MUTANTS = [
    (file, old, new, f"test_testing.py::test_own_samplers_pass[{strategy}]")
    for strategy, faults in FAULTS.items()
    for file, old, new in faults
]

CONSTRAINED = "decoding/constrained_beam.py"
LOST = "test_decoding_beam.py::test_no_text_that_holds_every_phrase_is_lost"
ENDS = "test_decoding_beam.py::test_a_forced_token_may_end_the_text"
READ = "test_decoding_beam.py::test_progress_is_complete_when_every_phrase_occurs"
FREE = "test_decoding_laws.py::test_without_constraints_it_is_beam_search"


MUTANTS += [
    # the best extension of each beam is not kept (transformers 4)
    (CONSTRAINED, "            found += best_of_each(", "            best_of_each(", LOST),
    # nor the tokens of phrases
    (CONSTRAINED, "            found += forced(", "            forced(", LOST),
    # a text ends without its phrases
    (CONSTRAINED, "if c.progress.complete][: rules.num_beams]",
     "if c.reason][: rules.num_beams]", LOST),
    # the best score first, whatever the text lacks
    (CONSTRAINED, "require_texts(finished + ranked(cut))",
     "require_texts(ranked(finished + cut))", LOST),
    # the emptiest bank first
    (CONSTRAINED, "(taken[bank], -bank, candidate.beam)",
     "(taken[bank], bank, candidate.beam)", LOST),
    # no text ends at the last step: those that are open are not looked at
    (CONSTRAINED, "found = [*successors(beams, log_probs, rules.keep)]",
     "found = [*successors(beams, log_probs, rules.num_beams)]", FREE),
    # a token that was forced ends no text
    (CONSTRAINED, "return Candidate(beam, read, job.ends(beam.tokens))",
     "return Candidate(beam, read, job.ends(beam.tokens[:-1]))", ENDS),
    # a phrase that the end token completes comes too late for it (transformers 4)
    (CONSTRAINED, "progress([*before, *beam.tokens], constraints)",
     "progress([*before, *beam.tokens[:-1]], constraints)", ENDS),
    # a text may end wherever it stands among the candidates
    (CONSTRAINED, "if c.progress.complete][: rules.num_beams]",
     "if c.progress.complete]", FREE),
    (CONSTRAINED, "for n in range(longest, 0, -1) if text[len",
     "for n in range(1, longest + 1) if text[len", READ),
    (CONSTRAINED, "found = min(demanded, sum(", "found = min(1, sum(", READ),
    (CONSTRAINED, "(matched > 0) == (most > 0)", "matched == 0", READ),
]  # fmt: skip

REGEX, AUTOMATON = "decoding/regex.py", "decoding/automaton.py"
TEXT, VALUES = "decoding/json_text.py", "decoding/schema_values.py"
SCHEMA, GUIDED = "decoding/json_schema.py", "decoding/guided.py"
GUIDE = "test_decoding_guided.py::"
SAYS = GUIDE + "test_what_a_schema_says_is_what_can_be_written"
CLASSES = GUIDE + "test_classes_take_what_javascript_and_python_agree_on"
BOUNDS = GUIDE + "test_bounds_are_kept_exactly"
SUM = GUIDE + "test_optional_fields_cost_their_sum"
MASK = GUIDE + "test_the_mask_is_what_trying_every_token_says"
PATTERN = GUIDE + "test_a_pattern_speaks_of_characters_that_json_may_have_to_escape"
ONCE = GUIDE + "test_a_tokenizer_s_tree_is_made_once_and_goes_with_it"

MUTANTS += [
    # what is negated lets through all that is not ASCII
    (REGEX, "return Meaning(invert(self.possible), invert(self.certain))",
     "return Meaning(invert(self.certain), invert(self.certain))", CLASSES),
    (REGEX, "return invert(possible) if negated else certain",
     "return invert(certain) if negated else certain", CLASSES),
    (REGEX, "both = invert(invert(ecma) + invert(python))", "both = python", CLASSES),
    # a pattern has to match the whole string
    (REGEX, "[*[anything] * (not start), node, *[anything] * (not end)]", "[node]",
     PATTERN),
    # a piece returns to where it was first called from
    (AUTOMATON, "yield (first, (after, back))", "yield (first, (after, None))", SAYS),
    # a way that never ends stays open
    (AUTOMATON, "return node if content in fine else None", "return node",
     GUIDE + "test_what_a_pattern_cannot_say_is_refused"),
    # equal objects are built anew each time
    (SCHEMA, '        return ("call", name)\n    if kind == "object":',
     '        return book.pieces[name]\n    if kind == "object":', SUM),
    # no comma before what follows
    (AUTOMATON, "            if something is not None:\n                self.comma(",
     "            if nothing is None:\n                self.comma(", SAYS),
    # an optional item cannot be left out once something stands
    (AUTOMATON, "        if low == 0 and something is not None:", "        if False:", SAYS),
    # half a surrogate pair is a character
    (TEXT, "[dD][0-7][0-9a-fA-F]{2})", "[dD][0-9a-fA-F]{3})",
     GUIDE + "test_half_a_character_is_not_a_character"),
    # open bounds are closed, closed ones open
    (TEXT, "first += open_low and first == low * unit", "first += 0", BOUNDS),
    (TEXT, "last = min(last, most - (open_high and most == high * unit))",
     "last = min(last, most)", BOUNDS),
    (TEXT, "least, most = max(1, -(high or 0)), None if low is None else -low",
     "least, most = max(1, -(high or 0)), None", BOUNDS),
    # a further property may have the name of a declared one
    (SCHEMA, "json_text.other_than(list(properties))", "json_text.other_than([])", SAYS),
    # the type beside enum is ignored
    (SCHEMA, 'if "type" in schema:\n        types', 'if False:\n        types', SAYS),
    (VALUES, "isinstance(a, bool) == isinstance(b, bool) and a == b", "a == b", SAYS),
    # the type beside a list of names is ignored; further names are free
    (VALUES, 'able = "string" in', 'able = True or "string" in', GUIDE + "test_what_a_pattern_cannot_say_is_refused"),
    (SCHEMA, "names = _string(allowed)", "pass", SAYS),
    # options that have a value in common are taken for disjoint
    (VALUES, 'return kinds | {"integer"} if "number" in kinds else kinds',
     "return kinds", GUIDE + "test_what_a_pattern_cannot_say_is_refused"),
    (GUIDED, "nodes[longer[ends]] = passed + place[ends]",
     "nodes[longer[ends]] = place[ends]", MASK),
    # a text is read on from another one
    (GUIDED, "before = before if before in self.texts else ()",
     "before = before if before in self.texts else text",
     GUIDE + "test_texts_are_read_from_what_is_known_of_them"),
    # the tree outlives its tokenizer; or every prompt has its own
    (GUIDED, "        finalize(tokenizer, _VOCABULARIES.pop, key)\n", "", ONCE),
    (GUIDED, "    if key not in _VOCABULARIES:", "    if True:", ONCE),
]  # fmt: skip
