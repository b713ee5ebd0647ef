"""Which profile of Hypothesis was asked for; `conftest` says what each means."""

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dev")
THOROUGH = PROFILE == "ci"
