"""Closed forms and counter beside torch's own counter, both running."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from needs import needs

torch = needs("torch")
transformers = needs("transformers")
if not transformers.__version__.startswith("5.23"):
    pytest.skip("the oracle is transformers 5.23", allow_module_level=True)

from goldens import flops as oracle  # noqa: E402
from goldens.flops_cases import BATCHES, CASES, COMPONENTS, KINDS  # noqa: E402
from goldens.model_cases import Case  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import configs  # noqa: E402
from torch.utils.flop_counter import sdpa_flop_count  # noqa: E402

from npllama.config import config_to_hf  # noqa: E402
from npllama.cost import operators  # noqa: E402

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "flops.npz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [0, len(CASES) - 1])
def test_the_golden_is_what_torch_counts(case, kind):
    for b, batch in enumerate(BATCHES):
        found = oracle.counted(CASES[case], batch, kind)
        assert np.array_equal(found, GOLDEN[kind][case, b])


@given(configs(["default"]), st.integers(1, 3))
def test_closed_form_equals_torchs_count_of_any_config(config, batch):
    # transformers refuses a width that the heads do not divide, also with head_dim.
    width = config.hidden_size * config.num_attention_heads
    config = replace(config, hidden_size=width)
    counted = oracle.counted(Case("any", config_to_hf(config)), batch, "eager")
    cached = 0
    for new, row in zip(oracle.PASSES, counted.tolist(), strict=True):
        expected = dict(zip(COMPONENTS, row))
        ops = operators(config, batch, new, cached)
        found = {op.name: op.flops for op in ops if op.flops}
        found["attention"] = found.pop("scores") + found.pop("values")
        assert found == {n: flops for n, flops in expected.items() if n != "all"}
        assert sum(found.values()) == expected["all"]
        cached += new


@given(*[st.integers(1, 9)] * 5)
def test_where_torch_knows_a_fused_kernel_it_counts_the_full_square(B, H, T, S, D):
    """On a GPU, that is: so there it agrees with eager attention again."""
    q, k = (B, H, T, D), (B, H, T + S, D)
    assert sdpa_flop_count(q, k, k) == 2 * 2 * B * H * T * (T + S) * D
