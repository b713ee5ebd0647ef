"""How hard the properties look: the profiles of Hypothesis.

`dev`, the default, tries 25 examples of every law, the same ones in every run, so
that a plain `pytest` is quick and says the same thing twice.  `ci` tries 200, new
ones every time, and prints how to repeat a failure.  `sweep` tries 1,000 new ones: for the
laws alone, chosen by ``-m hypothesis``, now and then.  `mutants` tries 200, the same
ones in every run, without shrinking: where a failure is expected, it comes early, and
nobody reads the example.

    HYPOTHESIS_PROFILE=ci pytest
    HYPOTHESIS_PROFILE=sweep pytest -m hypothesis
    HYPOTHESIS_PROFILE=sweep pytest -m hypothesis --hypothesis-seed 1    # repeatable
"""

import os

# Of several processes, each has one core.  NumPy reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import Phase, settings
from profiles import PROFILE

settings.register_profile("dev", max_examples=25, deadline=None, derandomize=True)
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True)
settings.register_profile(
    "sweep", settings.get_profile("ci"), max_examples=1000, database=None
)
settings.register_profile(
    "mutants",
    settings.get_profile("dev"),
    max_examples=200,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile(PROFILE)


@pytest.fixture
def as_recorded():
    """The profile of recorded reports: more examples would find more."""
    settings.load_profile("dev")
    yield
    settings.load_profile(PROFILE)
