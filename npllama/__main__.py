"""``python -m npllama``."""

import sys

from npllama.cli.main import main

sys.exit(main())
