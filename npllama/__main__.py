"""``python -m npllama``."""

import sys

from npllama.cli import main

sys.exit(main())
