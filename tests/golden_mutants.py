"""Faults of the golden reference, each with the law that must notice it."""

FLOOR, COMPARE = "test_golden_floor.py::test_", "test_golden_compare.py::test_"
DIAGNOSE, NAMES = "test_golden_diagnose.py::test_", "test_golden_names.py::test_"

MUTANTS = [
    (
        "golden/floor.py",
        "raised(max(worst(part), worst(steps)))",
        "raised(worst(part))",
        FLOOR + "floor_of_a_head_is_the_worst_of_all_steps",
    ),
    (
        "golden/floor.py",
        "for x in steps.spots.max(axis=0)]",
        "for x in part.spots.max(axis=0)]",
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
        "chance = 3 * spread / np.sqrt(causes(own))",
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
        "golden/diagnose.py",
        "(within and left <= BETTER * before)",
        "within",
        DIAGNOSE + "number_is_not_fitted_to_what_is_just_outside",
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
