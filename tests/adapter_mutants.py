"""Faults in adapters beside their base, and the test that notices each."""

BESIDE, COST = "compression/adapters.py", "cost/adapters.py"
REQUESTS, ENGINE = "serving/requests.py", "serving/engine.py"
A = "tests/test_compression_adapters.py::test_"
HAND = A + "two_outputs_by_hand"
FOLDER = A + "a_folder_of_peft_is_read"
OWN = A + "every_row_gets_its_own_adapter"
ASKED = A + "requests_name_adapters_and_get_what_they_get_alone"
HEAD = A + "a_heads_cost_by_hand"
SCALE = 'return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)'

MUTANTS = [
    # alpha forgotten; the scale applied twice, or squared; alpha over R squared
    (BESIDE, "low * added.scale", "low", HAND),
    (BESIDE, "low * added.scale", "low * added.scale**2", HAND),
    (BESIDE, "y[rows] += change(a[rows], added, self.name)",
     "y[rows] += change(a[rows], added, self.name) * added.scale", HAND),
    ("convert/adapter.py", SCALE,
     SCALE.replace("else rank)", "else rank**2)"),
     "tests/test_convert_adapter.py::test_the_scale_is_alpha_over_rank_or_its_root"),
    ("convert/adapter.py", SCALE, SCALE.replace("alpha /", "1 /"), FOLDER),
    # the factors exchanged, where their shapes allow it; the base left out
    (BESIDE, "LowRank(read(f.a), read(f.b), f.scale)",
     "LowRank(read(f.b).T, read(f.a).T, f.scale)",
     A + "the_factors_of_a_square_matrix_are_not_exchanged"),
    (BESIDE, "y[rows] += change", "y[rows] = change", HAND),
    # another row's adapter: of positions, of logits; the last adapter alone
    (BESIDE, "np.flatnonzero(rows == name)", "np.flatnonzero(rows != name)", OWN),
    (BESIDE, "np.flatnonzero(logits == name)", "np.flatnonzero(rows == name)", OWN),
    (BESIDE, "use.logits if module == HEAD else use.rows", "use.rows", OWN),
    (BESIDE, "tuple(found)) if found", "tuple(found[-1:])) if found", OWN),
    (ENGINE, "beside(model, rows, rows[last])",
     "beside(model, rows[::-1], rows[::-1][last])", ASKED),
    # pages of one adapter taken by another
    (REQUESTS, "salt=salt_of(request)", "salt=request.salt", ASKED),
    (REQUESTS, ' and not request.salt.startswith("[")', "",
     A + "no_two_pairs_of_adapter_and_salt_share_pages"),
    # what can only be merged
    (BESIDE, 'if settings.get("use_dora"):', "if False:",
     A + "what_cannot_stand_beside_is_refused_by_name[DoRA]"),
    # what it costs
    (COST, "2 * n * R * wide", "n * R * wide", HEAD),
    (COST, 'n = work.logits if name == "lm_head" else work.positions',
     "n = work.positions", HEAD),
    (COST, "work.passes * R * wide", "R * wide", HEAD),
]  # fmt: skip
