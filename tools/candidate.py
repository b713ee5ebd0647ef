"""``npllama golden candidate`` in a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from npllama.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["golden", "candidate", *sys.argv[1:]]))
