"""Every law of every strategy that a sampler offers, as a test of its own.

pytest --pyargs npllama.conformance --sampler mypackage.mymodule:factory
"""

import pytest

from npllama.conformance.session import NAME


def pytest_generate_tests(metafunc):
    session = metafunc.config.pluginmanager.get_plugin(NAME)
    trials = session.trials if session else []
    metafunc.parametrize("trial", trials, ids=str)


def test_law(trial, request, record_property):
    result = request.config.pluginmanager.get_plugin(NAME).examine(trial)
    record_property(NAME, result._asdict())
    if result.example:
        pytest.fail(f"{trial.offer}: {result.example}", pytrace=False)
