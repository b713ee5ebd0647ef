"""The options of ``pytest --pyargs npllama.conformance``.

pytest reads its command line before it looks for packages, so options must come from
an installed plugin.  Every run of pytest loads it where npllama is installed, so it
stands outside the package and imports nothing.
"""

NAME = "npllama.conformance"


def pytest_addoption(parser):
    """Add the options of the conformance kit."""
    group = parser.getgroup(NAME, "checks of a sampler against npllama's laws")
    group.addoption(
        "--sampler",
        metavar="MODULE:FACTORY",
        help="what to check; see the documentation of npllama.conformance",
    )
    group.addoption(
        "--sampler-report", metavar="FILE", help="also write the report as JSON"
    )
    group.addoption(
        "--sampler-examples",
        metavar="N",
        type=int,
        default=100,
        help="cases to try of every law (default 100)",
    )


def pytest_configure(config):
    """Load the sampler that is named; without one, refuse the conformance tests."""
    wanted = any(NAME in str(arg) for arg in config.args)
    if config.getoption("sampler"):
        import os
        import sys

        import pytest

        # Where `python -m` would look, too: samplers lie in the current folder.
        sys.path.insert(0, os.getcwd())
        try:
            from npllama.conformance.session import Session
        except ImportError as problem:
            raise pytest.UsageError(str(problem)) from None
        config.pluginmanager.register(Session(config), NAME)
    elif wanted and not config.option.help:
        import pytest

        raise pytest.UsageError(
            f"{NAME} checks a sampler: name it by --sampler MODULE:FACTORY"
        )
