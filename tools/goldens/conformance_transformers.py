"""Record what the conformance kit finds in transformers 5."""

from pathlib import Path

import torch
import transformers
from samplers.transformers5 import by_its_conventions, factory

from goldens.conformance import record, write


def make(folder: Path) -> None:
    """Write conformance_transformers.json into `folder`."""
    torch.set_num_threads(1)
    library = f"transformers {transformers.__version__}"
    found = record(library, factory, by_its_conventions)
    write(folder, "transformers", found)
