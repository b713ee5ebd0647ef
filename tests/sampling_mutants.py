"""Bugs that the samplers' tests must notice, each planted alone.

(file, old text, new text, test that must fail); the old text stands exactly
once in the file. Most of them were somebody's bug once, see the known
disagreements between libraries.
"""

DRAW = "npllama/sampling/draw.py"
ROWS = "npllama/sampling/rows.py"
TEMPERATURE = "npllama/sampling/temperature.py"
TRUNCATION = "npllama/sampling/truncation.py"
XTC = "npllama/sampling/xtc.py"
ENTROPY = "npllama/sampling/entropy.py"
MIROSTAT = "npllama/sampling/mirostat.py"
PENALTIES = "npllama/sampling/penalties.py"
REPEATS = "npllama/sampling/repeats.py"
BIAS = "npllama/sampling/bias.py"
CONSTRAINTS = "npllama/sampling/constraints.py"
GUIDANCE = "npllama/sampling/guidance.py"
WATERMARK = "npllama/sampling/watermark.py"
SYNTHID = "npllama/sampling/synthid.py"
SEEING = "npllama/sampling/synthid_detector.py"
CHAIN = "npllama/sampling/chain.py"

T_DRAW = "tests/test_sampling_draw.py::"
T_TEMPERATURE = "tests/test_sampling_temperature.py::"
T_TRUNCATION = "tests/test_sampling_truncation.py::"
T_MIROSTAT = "tests/test_sampling_mirostat.py::"
T_PENALTIES = "tests/test_sampling_penalties.py::"
T_CONSTRAINTS = "tests/test_sampling_constraints.py::"
T_WATERMARK = "tests/test_sampling_watermark.py::"
T_CHAIN = "tests/test_sampling_chain.py::"
IS_DEFINITION = T_TRUNCATION + "test_truncation_is_the_definition"

MUTANTS = [
    # the draw
    (
        DRAW,
        'side="right")',
        'side="left")',
        T_DRAW + "test_every_token_owns_exactly_its_probability_of_u",
    ),
    (
        DRAW,
        "np.flatnonzero(probs > 0)",
        "np.arange(probs.size)",
        T_DRAW + "test_weights_too_small_to_add_up_still_yield_a_possible_token",
    ),
    (
        DRAW,
        "u * ends[-1]",
        "u",
        T_DRAW + "test_weights_need_not_add_up_to_one",
    ),
    (
        DRAW,
        "min(hit, possible.size - 1)",
        "hit",
        T_DRAW + "test_weights_too_small_to_add_up_still_yield_a_possible_token",
    ),
    (
        DRAW,
        "values.astype(np.float64) - values.max()",
        "values.astype(np.float64)",
        T_DRAW + "test_a_huge_row_keeps_its_distribution",
    ),
    (
        DRAW,
        "return logits.argmax(axis=-1)",
        "return logits.shape[-1] - 1 - logits[..., ::-1].argmax(axis=-1)",
        T_DRAW + "test_greedy_takes_the_lowest_of_the_most_probable_ids",
    ),
    (
        DRAW,
        "below - np.log(np.exp(below).sum())",
        "below - np.exp(below).sum()",
        T_DRAW + "test_log_softmax_is_the_logarithm_of_softmax",
    ),
    (
        DRAW,
        "((u >= 0) & (u < 1)).all()",
        "((u >= 0) & (u <= 1)).all()",
        T_DRAW + "test_u_outside_its_interval_is_refused",
    ),
    # rows
    (
        ROWS,
        "if not logits.max() < np.inf:",
        "if logits.max() == np.inf:",
        T_DRAW + "test_nan_and_infinity_are_named_with_their_place",
    ),
    (
        ROWS,
        "row[row] = kept(logits[index][row], *settings)",
        "row[row] = kept(logits[index][row], *settings) | True",
        IS_DEFINITION,
    ),
    (
        ROWS,
        "np.where(left, logits, logits.dtype.type(-np.inf))",
        "np.where(left, logits, np.array([-np.inf]))",
        T_TRUNCATION + "test_truncation_keeps_values_and_type_and_revives_nothing",
    ),
    (
        ROWS,
        "outside = (array < 0) | (array >= size)",
        "outside = (array < -size) | (array >= size)",
        T_PENALTIES + "test_an_option_out_of_range_is_named",
    ),
    # temperature
    (
        TEMPERATURE,
        "divided = logits / logits.dtype.type(t)",
        "return logits * logits.dtype.type(t)",
        T_TEMPERATURE + "test_temperature_divides",
    ),
    (
        TEMPERATURE,
        "max(0.0, t - spread), t + spread",
        "max(0.0, t - spread), t",
        T_TEMPERATURE + "test_a_row_of_equals_gets_the_highest_temperature",
    ),
    (
        TEMPERATURE,
        "math.log(logp.size)",
        "math.log(row.size)",
        T_TEMPERATURE + "test_a_row_of_equals_gets_the_highest_temperature",
    ),
    (
        TEMPERATURE,
        "** exponent",
        "** 1",
        T_TEMPERATURE + "test_dynamic_temperature_is_the_definition",
    ),
    (
        TEMPERATURE,
        "cold = peak >= t_row * float(np.finfo(row.dtype).max)",
        "cold = False",
        T_TEMPERATURE + "test_a_certain_row_gets_the_lowest_temperature",
    ),
    # truncation
    (
        TRUNCATION,
        "lambda values: values >= kth_largest(values, k)",
        "lambda values: values > kth_largest(values, k)",
        T_TRUNCATION + "test_top_k_keeps_k_tokens_or_more_only_for_ties",
    ),
    (
        TRUNCATION,
        "k = max(k, min_tokens_to_keep)",
        "k = min(k, min_tokens_to_keep)",
        T_TRUNCATION + "test_min_tokens_to_keep_raises_k",
    ),
    (
        TRUNCATION,
        "np.searchsorted(mass, p, side=side)) + 1",
        "np.searchsorted(mass, p, side=side))",
        T_TRUNCATION + "test_the_nucleus_is_the_smallest_upper_set_that_holds_p",
    ),
    (
        TRUNCATION,
        '"left" if crossing == "exclusive" else "right"',
        '"right" if crossing == "exclusive" else "left"',
        T_TRUNCATION + "test_where_a_sum_meets_p_exactly_the_convention_decides",
    ),
    (
        TRUNCATION,
        'first = equal if ties == "lowest" else equal[::-1]',
        "first = equal",
        T_TRUNCATION + "test_where_a_sum_meets_p_exactly_the_convention_decides",
    ),
    (
        TRUNCATION,
        "if count <= size or size == values.size:",
        "if True:",
        T_TRUNCATION
        + "test_a_large_vocabulary_is_searched_in_parts_with_the_same_result",
    ),
    (
        TRUNCATION,
        "total = np.exp(below).sum()",
        "total = np.exp(np.sort(below)[-256:]).sum()",
        T_TRUNCATION
        + "test_a_large_vocabulary_is_searched_in_parts_with_the_same_result",
    ),
    (
        TRUNCATION,
        "count = max(_count_to(values, enough), min_tokens_to_keep)",
        "count = _count_to(values, enough)",
        T_TRUNCATION + "test_top_p_of_zero_or_next_to_it_keeps_the_fewest_allowed",
    ),
    (
        TRUNCATION,
        "if p == 1:",
        "if p > 1:",
        T_TRUNCATION + "test_top_p_of_zero_or_next_to_it_keeps_the_fewest_allowed",
    ),
    (
        TRUNCATION,
        "(softmax(values) >= epsilon) | saved",
        "(softmax(values) > epsilon) | saved",
        T_TRUNCATION + "test_a_probability_below_the_best_but_at_the_threshold_stays",
    ),
    (
        TRUNCATION,
        "(softmax(values) >= epsilon) | saved",
        "softmax(values) >= epsilon",
        T_TRUNCATION + "test_a_probability_at_the_threshold_stays",
    ),
    (
        TRUNCATION,
        "np.exp(below_peak(values)) >= p",
        "np.exp(below_peak(values)) > p",
        T_TRUNCATION + "test_min_p_of_one_keeps_the_maxima_and_of_zero_all",
    ),
    (
        TRUNCATION,
        "np.exp(below_peak(values)) >= p",
        "softmax(values) >= p",
        T_TRUNCATION + "test_min_p_compares_logits_with_the_largest",
    ),
    (
        TRUNCATION,
        "probs >= a * probs.max() ** 2",
        "probs >= a * probs.max()",
        IS_DEFINITION,
    ),
    (
        XTC,
        "~largest(values, good - 1,",
        "~largest(values, good,",
        T_TRUNCATION + "test_xtc_leaves_one_of_the_good_tokens",
    ),
    (
        XTC,
        "acts = (u < probability)",
        "acts = (u <= probability)",
        IS_DEFINITION,
    ),
    # entropy
    (
        ENTROPY,
        "EQUAL = 2.0**-49",
        "EQUAL = 0.0",
        T_TRUNCATION
        + "test_what_is_equal_in_exact_arithmetic_is_not_decided_by_the_last_bit",
    ),
    (
        ENTROPY,
        "mass * (1 + EQUAL) if cuts_ties else mass * (1 - EQUAL)",
        "mass * (1 - EQUAL)",
        T_TRUNCATION
        + "test_the_most_probable_token_can_be_too_predictable_to_be_typical",
    ),
    (
        ENTROPY,
        "saved | (oddity <= oddity[order[count - 1]])",
        "saved | (oddity < oddity[order[count - 1]])",
        T_TRUNCATION + "test_typical_keeps_all_of_a_row_of_equals",
    ),
    (
        ENTROPY,
        "np.abs(-logp - _entropy(logp))",
        "-logp",
        T_TRUNCATION
        + "test_the_most_probable_token_can_be_too_predictable_to_be_typical",
    ),
    (
        ENTROPY,
        "math.sqrt(epsilon) * math.exp(-_entropy(logp))",
        "epsilon * math.exp(-_entropy(logp))",
        IS_DEFINITION,
    ),
    (
        ENTROPY,
        "(held <= allowed) & (probs > 0)",
        "held <= allowed",
        T_TRUNCATION + "test_top_h_of_a_certain_row_keeps_one_token",
    ),
    (
        ENTROPY,
        "return held / mass + np.log(mass)",
        "return held / mass",
        T_TRUNCATION + "test_top_h_by_the_paper_bounds_the_entropy_of_what_stays",
    ),
    (
        ENTROPY,
        "size = min(max_tokens, values.size)",
        "size = values.size",
        T_TRUNCATION + "test_top_h_of_one_keeps_a_hundred_tokens",
    ),
    (
        ENTROPY,
        "exact.max() - n * exact.std()",
        "exact.max() - n * exact.std(ddof=exact.size > 1)",
        IS_DEFINITION,
    ),
    (
        ENTROPY,
        "np.cumsum(share) > z",
        "np.cumsum(share) >= z / 2",
        IS_DEFINITION,
    ),
    (
        ENTROPY,
        'more = 1 if convention == "webui" else 0',
        "more = 0",
        T_TRUNCATION + "test_the_webui_cuts_the_tail_one_token_later",
    ),
    # mirostat
    (
        MIROSTAT,
        "surprise = -log_softmax(values) / math.log(2)",
        "surprise = -log_softmax(values)",
        T_MIROSTAT + "test_version_2_keeps_what_surprises_by_no_more_than_mu",
    ),
    (
        MIROSTAT,
        "return mu - eta *",
        "return mu + eta *",
        T_MIROSTAT + "test_in_the_long_run_the_mean_surprise_is_tau",
    ),
    (
        MIROSTAT,
        "return 2.0 * tau",
        "return tau",
        T_MIROSTAT + "test_a_text_starts_at_twice_tau",
    ),
    (
        MIROSTAT,
        "excess = (s - 1) * math.log(size)",
        "excess = s * math.log(size)",
        T_MIROSTAT + "test_version_1_is_the_definition",
    ),
    (
        MIROSTAT,
        "/ -math.expm1(-excess) if excess else 1.0",
        "/ -math.expm1(-excess)",
        T_MIROSTAT + "test_version_1_survives_the_poles_of_its_formula",
    ),
    (
        MIROSTAT,
        "k = min(_zipf_k(zipf_exponent(values, m), mu, size)",
        "k = min(_zipf_k(zipf_exponent(values, m), mu, values.size)",
        T_MIROSTAT + "test_version_1_counts_the_removed_tokens_in_the_vocabulary",
    ),
    # penalties
    (
        PENALTIES,
        "np.where(row[seen] < 0, row[seen] * factor, row[seen] / factor)",
        "row[seen] / factor",
        T_PENALTIES + "test_token_penalties_are_the_definition",
    ),
    (
        PENALTIES,
        "np.unique(history[window])",
        "np.unique(history)",
        T_PENALTIES + "test_a_window_sees_only_the_last_tokens",
    ),
    (
        PENALTIES,
        "slice(-last_n, None) if last_n else slice(0)",
        "slice(-last_n, None)",
        T_PENALTIES + "test_a_window_sees_only_the_last_tokens",
    ),
    (
        PENALTIES,
        "repetition_penalty(logits, prompt, 1 / penalty)",
        "repetition_penalty(logits, prompt, penalty)",
        T_PENALTIES + "test_a_penalty_and_its_inverse_cancel",
    ),
    (
        PENALTIES,
        "_subtract, penalty, window_of(last_n), 1)",
        "_subtract, penalty, window_of(last_n), math.inf)",
        T_PENALTIES + "test_token_penalties_are_the_definition",
    ),
    (
        PENALTIES,
        "np.asarray(new_tokens) - start, 0",
        "np.asarray(new_tokens) - start + 1, 0",
        T_PENALTIES + "test_the_length_penalty_is_the_definition",
    ),
    (
        PENALTIES,
        "np.minimum(np.float64(factor) ** late - 1, most)",
        "(np.float64(factor) ** late - 1)",
        T_PENALTIES + "test_the_length_penalty_never_overflows_nor_revives_the_end",
    ),
    (
        REPEATS,
        "history[history.size - (n - 1) :]",
        "history[-(n - 1) :]",
        T_PENALTIES + "test_ngrams_are_forbidden_by_the_definition",
    ),
    (
        REPEATS,
        "place = place[place >= n]",
        "place = place[place > n]",
        T_PENALTIES + "test_dry_is_the_definition",
    ),
    (
        REPEATS,
        "start - max(lengths)",
        "start - min(lengths)",
        T_PENALTIES + "test_dry_counts_no_further_back_than_a_breaker",
    ),
    (
        REPEATS,
        "if len(b) == 1]] = 0",
        "if len(b) == 0]] = 0",
        T_PENALTIES + "test_dry_counts_no_further_back_than_a_breaker",
    ),
    (
        REPEATS,
        "longest >= allowed_length",
        "longest > allowed_length",
        T_PENALTIES + "test_dry_grows_with_the_length_of_the_repeat",
    ),
    (
        REPEATS,
        "np.minimum(longest[too_long] - allowed_length, most)",
        "longest[too_long] - allowed_length",
        T_PENALTIES + "test_dry_stays_finite_over_a_long_repeat",
    ),
    # biases, constraints, guidance
    (
        BIAS,
        "text[max(len(text) - len(begin), 0) :]",
        "text[-len(begin) :]",
        T_CONSTRAINTS + "test_sequence_bias_is_the_definition",
    ),
    (
        BIAS,
        "added[last] += amount",
        "added[last] = amount",
        T_CONSTRAINTS + "test_a_sequence_longer_than_the_text_cannot_be_completed",
    ),
    (
        BIAS,
        "for w in words if w not in ends",
        "for w in words",
        T_CONSTRAINTS + "test_a_bad_word_that_is_only_an_end_token_is_passed_over",
    ),
    (
        CONSTRAINTS,
        "short = np.asarray(length) < min_length",
        "short = np.asarray(length) <= min_length",
        T_CONSTRAINTS + "test_the_end_is_forbidden_just_while_the_text_is_short",
    ),
    (
        CONSTRAINTS,
        "np.asarray(length) == max_length - 1",
        "np.asarray(length) == max_length",
        T_CONSTRAINTS + "test_a_forced_token_has_all_the_probability",
    ),
    (
        CONSTRAINTS,
        "next(batch) // num_beams",
        "next(batch)",
        T_CONSTRAINTS + "test_a_function_of_the_text_decides_what_may_follow",
    ),
    (
        CONSTRAINTS,
        "np.where(np.repeat(alive, num_beams)[:, None], out, masks)",
        "out",
        T_CONSTRAINTS + "test_what_is_allowed_comes_back_where_every_beam_had_lost_it",
    ),
    (
        GUIDANCE,
        "without[both] + guidance_scale * change",
        "with_prompt[both] + guidance_scale * change",
        T_CONSTRAINTS + "test_guidance_is_affine_between_the_two_answers",
    ),
    (
        GUIDANCE,
        "(with_prompt > -np.inf) & (without > -np.inf)",
        "without > -np.inf",
        T_CONSTRAINTS + "test_guidance_is_affine_between_the_two_answers",
    ),
    # watermarks
    (
        WATERMARK,
        "words[i] % (size - i)",
        "words[i] % size",
        T_WATERMARK + "test_the_permutation_is_that_of_torch",
    ),
    (
        WATERMARK,
        "int(context[-1])",
        "int(context[0])",
        T_WATERMARK + "test_the_list_depends_on_the_last_token_and_the_key",
    ),
    (
        WATERMARK,
        "int(products.min())",
        "int(products.max())",
        T_WATERMARK + "test_selfhash_takes_the_least_hash_of_its_window",
    ),
    (
        WATERMARK,
        "np.append(history, token)",
        "history",
        T_WATERMARK + "test_selfhash_asks_forty_candidates_for_their_own_list",
    ),
    (
        WATERMARK,
        "(g - gamma * n) / math.sqrt(n * gamma * (1 - gamma))",
        "(g - gamma * n) / math.sqrt(n * gamma)",
        T_WATERMARK + "test_the_score_counts_green_tokens",
    ),
    (
        SYNTHID,
        "(np.atleast_1d(hashed) + data) * MULTIPLIER + 1",
        "np.atleast_1d(hashed) * MULTIPLIER + data + 1",
        T_WATERMARK + "test_g_values_are_the_definition",
    ),
    (
        SYNTHID,
        "probs * (g + ((1 - g) * probs).sum(axis=-1, keepdims=True))",
        "probs * (g + (1 - g) * probs.sum(axis=-1, keepdims=True))",
        T_WATERMARK + "test_over_all_g_the_tournament_changes_nothing",
    ),
    (
        SYNTHID,
        "np.where(repeated, logits, marked)",
        "marked",
        T_WATERMARK + "test_a_context_seen_before_is_not_marked_again",
    ),
    (
        SEEING,
        "ended[config.ngram_len - 1 :]",
        "ended[: 1 - config.ngram_len]",
        T_WATERMARK + "test_repeated_contexts_and_what_follows_the_end_do_not_count",
    ),
    (
        SEEING,
        "np.linspace(10, 1,",
        "np.linspace(1, 10,",
        T_WATERMARK + "test_scores_are_means_over_what_counts",
    ),
    (
        SEEING,
        "np.tril(detector.delta, -1)",
        "np.tril(detector.delta)",
        T_WATERMARK + "test_marked_g_values_have_a_probability_each_and_add_up_to_one",
    ),
    (
        SEEING,
        "np.log1p((g - 0.5)",
        "np.log1p((g - 1.0)",
        T_WATERMARK + "test_bayesian_score_is_that_of_loops",
    ),
    (
        SEEING,
        "+ float(evidence)",
        "- float(evidence)",
        T_WATERMARK + "test_no_text_is_seen_where_no_two_tokens_ever_meet",
    ),
    (
        SEEING,
        "detector.beta + rate * slope.mean(axis=0)",
        "detector.beta - rate * slope.mean(axis=0)",
        T_WATERMARK + "test_detector_is_learned_from_marked_texts_and_beats_the_mean",
    ),
    (
        SEEING,
        "np.tril(pull, -1)",
        "0 * pull",
        T_WATERMARK + "test_detector_is_learned_from_marked_texts_and_beats_the_mean",
    ),
    # the chain
    (
        CHAIN,
        "if top_k != 0:",
        "if top_k > 1:",
        T_CHAIN + "test_the_chain_is_temperature_then_top_k_then_top_p",
    ),
    (
        CHAIN,
        "for process in processors:",
        "for process in list(processors)[::-1]:",
        T_CHAIN + "test_the_chain_is_temperature_then_top_k_then_top_p",
    ),
    # the power at which DRY's penalty stops, computed in float64
    (
        REPEATS,
        "float(largest / np.log(np.float32(base)) // np.float32(1))",
        "math.log(3.4028234663852886e38) // math.log(base)",
        T_PENALTIES
        + "test_dry_counts_up_to_the_power_that_llama_cpp_reaches_in_float32",
    ),
    # the plain forms are other samplers than the fast ones
    (
        TRUNCATION,
        "np.count_nonzero(reached < p)]",
        "np.count_nonzero(reached <= p)]",
        T_TRUNCATION + "test_top_p_is_its_plain_form",
    ),
    (
        TRUNCATION,
        "[min(k, row.size) - 1]",
        "[min(k, row.size - 1)]",
        T_TRUNCATION + "test_top_k_is_its_plain_form",
    ),
    (
        TRUNCATION,
        "probs >= p * probs.max()",
        "probs > p * probs.max()",
        T_TRUNCATION + "test_min_p_is_its_plain_form",
    ),
    (
        ENTROPY,
        "for p, s in zip(probs, surprise) if p > 0)",
        "for p, s in zip(probs, surprise) if p > 0) / 2",
        T_TRUNCATION + "test_typical_is_its_plain_form",
    ),
    (
        DRAW,
        "if reached > u * total:",
        "if reached >= u * total:",
        T_DRAW + "test_draw_is_its_plain_form",
    ),
    (
        REPEATS,
        "range(len(text) - n + 1)",
        "range(len(text) - n)",
        T_PENALTIES + "test_no_repeat_is_its_plain_form",
    ),
    (
        REPEATS,
        "while lengths[j] < min(j, limit)",
        "while lengths[j] < min(j + 1, limit)",
        T_PENALTIES + "test_lengths_of_repeats_are_their_plain_form",
    ),
]
