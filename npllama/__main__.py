"""``python -m npllama``."""

import sys

from npllama_command import main

if __name__ == "__main__":
    sys.exit(main())
