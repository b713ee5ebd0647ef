"""Faults of the golden reference, each with the law that must notice it."""

FLOOR, COMPARE = "test_golden_floor.py::test_", "test_golden_compare.py::test_"
DIAGNOSE, NAMES = "test_golden_diagnose.py::test_", "test_golden_names.py::test_"

MUTANTS = [
    # weights are blamed though another position, or another step, is right
    (
        "golden/signs.py",
        "> SURELY",
        "> 2",
        NAMES + "weights_are_not_others_where_a_position_has_right_numbers",
    ),
    (
        "golden/signs.py",
        "    if not y.any():",
        "    if False:",
        NAMES + "zeros_are_not_called_a_multiple",
    ),
    (
        "golden/suspects.py",
        "if name in SHARED",
        "if not SHARED",
        NAMES + "a_share_of_a_sum_is_called_one",
    ),
    (
        "golden/floor.py",
        "raised(max(worst(part), worst(steps)))",
        "raised(worst(part))",
        FLOOR + "floor_of_a_head_is_the_worst_of_all_steps",
    ),
    (
        "golden/floor.py",
        "np.where(np.isfinite(steps.spots), steps.spots, -math.inf)",
        "np.where(np.isfinite(part.spots), part.spots, -math.inf)",
        FLOOR + "floor_of_a_head_is_the_worst_of_all_steps",
    ),
    (
        "golden/floor.py",
        "numbers = d.square**2 / d.fourth",
        "numbers = d.numbers",
        FLOOR + "a_number_that_carries_all_leaves_one_error",
    ),
    (
        "golden/distance.py",
        "chance = 3 * spread / np.sqrt(shared(causes(own)))",
        "chance = 0 * spread",
        FLOOR + "errors_of_one_cause_do_not_count_as_many",
    ),
    (
        "golden/distance.py",
        "return np.sqrt(square + typical)",
        "return np.sqrt(square.mean() + 0 * square)",
        FLOOR + "a_number_that_carries_all_leaves_one_error",
    ),
    (
        "golden/distance.py",
        "return np.minimum(n, 1 / mean) if mean > 0 else n",
        "return n",
        FLOOR + "causes_that_one_position_does_not_show_count_where_others_do",
    ),
    (
        "golden/distance.py",
        "(run[part] - y[part]) / n for run",
        "run[part] - y[part] for run",
        FLOOR + "errors_made_twice_as_large_count_half",
    ),
    (
        "golden/distance.py",
        " & (np.asarray(times) == 1))",
        ")",
        FLOOR + "errors_made_twice_as_large_count_half",
    ),
    (
        "golden/emulation.py",
        "for times in (1, 2):",
        "for times in (1, 1):",
        FLOOR + "errors_made_twice_as_large_count_half",
    ),
    (
        "golden/emulation.py",
        "at.round(scores + mask)",
        "np.where(mask < 0, np.float32(-np.inf), scores)",
        FLOOR + "plain_kernels_overflow_in_what_they_hide",
    ),
    (
        "golden/compare.py",
        "numbers_at(name, y.shape, positions & ~finite)",
        "numbers_at(name, y.shape, positions) & ~np.isfinite(y)",
        FLOOR + "what_stands_beside_an_infinity_is_lost_with_it",
    ),
    (
        "golden/compare.py",
        "or rows < LEAN_ROWS:",
        "or rows <= LEAN_ROWS:",
        COMPARE + "eight_positions_lean_and_seven_do_not",
    ),
    (
        "golden/measures.py",
        "known = np.minimum(known, own[:, None] if axis == 0 else own)",
        "known = own[:, None] if axis == 0 else own + 0 * known",
        COMPARE + "limit_of_a_head_is_the_lower_of_its_two_floors",
    ),
    (
        "golden/likeness.py",
        "told = valid | (y < HIDDEN)[valid].any()",
        "told = valid",
        NAMES + "fault_that_nobody_foresaw_gets_no_wrong_name",
    ),
    (
        "golden/likeness.py",
        "min(floor, BETTER * before)",
        "floor",
        DIAGNOSE + "number_is_not_fitted_to_what_is_just_outside",
    ),
    (
        "golden/likeness.py",
        "left <= min(floor, BETTER",
        "left <= min(limit, BETTER",
        NAMES
        + "near_its_limit_an_error_has_a_name_only_if_no_more_than_a_floor_is_left",
    ),
    (
        "golden/diagnose.py",
        "left > BETTER * right",
        "left > right",
        NAMES + "what_predicts_no_more_than_the_right_operation_explains_nothing",
    ),
    (
        "golden/diagnose.py",
        "block_of(module, 0) + whole)",
        "block_of(module, 0))",
        DIAGNOSE + "output_of_a_block_clears_it_and_its_inner_tensors_do_not",
    ),
    (
        "golden/diagnose.py",
        "yield finding, not describes and refuted_elsewhere(",
        "yield finding, False and refuted_elsewhere(",
        NAMES + "name_that_the_prefill_refutes_is_not_given_but_told",
    ),
]
