"""What the kit finds in transformers today is what was recorded of it."""

import json
from pathlib import Path

import pytest
from needs import needs

torch = needs("torch")
needs("transformers", minversion="5")

from samplers import transformers5  # noqa: E402

from npllama.conformance import examine, offers_of  # noqa: E402

GOLDEN = (
    Path(__file__).resolve().parents[1] / "goldens" / "conformance_transformers.json"
)
# Found by a known case, and so in every run.
SURE = {
    ("guidance", "a token that either answer has removed stays removed"),
    ("rejection", "a token of probability 0 never comes out, even at u = 0"),
    ("exponential_decay", "far past the start all logits are still numbers"),
}


def broken(results):
    return {(r["offer"], r["law"]) for r in results if r["example"]}


@pytest.mark.parametrize("whose", ["by the kit's", "by its own"])
def test_transformers_breaks_the_laws_that_are_recorded_and_no_other(
    whose, as_recorded
):
    torch.set_num_threads(1)
    own = whose == "by its own"
    offered = transformers5.by_its_conventions() if own else transformers5.factory()
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))[whose]["results"]
    today = examine(offers_of(offered)).record()["results"]
    assert {(r["offer"], r["law"]) for r in today} == {
        (r["offer"], r["law"]) for r in recorded
    }
    assert broken(today) <= broken(recorded)
    assert SURE & broken(recorded) <= broken(today)
