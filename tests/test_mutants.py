"""Every law kills its mutant: a fault planted in the package fails the named test.

Add a list `MUTANTS` to a file tests/<chapter>_mutants.py and it is checked here.  A
plain run takes a dozen of them, the profile `ci` all.
"""

import pytest
from chapters import PACKAGE
from mutation import collected, run
from profiles import THOROUGH

MUTANTS = collected()
SAMPLE = 12
CHOSEN = MUTANTS if THOROUGH else MUTANTS[:: -(-len(MUTANTS) // SAMPLE)]


@pytest.fixture(scope="module")
def results():
    return dict(zip(CHOSEN, run(CHOSEN), strict=True))


@pytest.mark.parametrize("mutant", CHOSEN, ids=lambda m: f"{m.file}: {m.new.strip()}")
def test_mutant_is_killed_by_its_law(mutant, results):
    code, output = results[mutant]
    # 0 would be a mutant that survived; 2 and above, a test that did not run.
    assert code == 1, output


def test_unharmed_package_passes_where_mutants_fail():
    mutant = MUTANTS[0]
    ((code, output),) = run([mutant._replace(new=mutant.old)])
    assert code == 0, output


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.file}: {m.new.strip()}")
def test_mutant_changes_a_text_that_stands_exactly_once(mutant):
    text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1 and mutant.new != mutant.old


def test_no_mutant_stands_in_two_lists():
    assert len(MUTANTS) == len(set(MUTANTS))
