"""Libraries that some tests compare with: skipped where they are not installed.

The reason of the skip says what to install.
"""

import pytest

# What brings a library that no extra of setup.cfg does.
ELSEWHERE = {"llama_cpp": "llama-cpp-python"}


def needs(name, extra="oracle", minversion=None):
    """The library `name`; where it is missing, the test or module is skipped."""
    how = ELSEWHERE.get(name, f"'.[{extra}]'")
    what = f"{name} {minversion}" if minversion else name
    reason = f"{what} is not installed: pip install {how}"
    return pytest.importorskip(name, minversion=minversion, reason=reason)
