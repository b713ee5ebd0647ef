"""Record what the conformance kit finds in llama.cpp."""

from pathlib import Path

import llama_cpp
from samplers.llamacpp import by_its_conventions, factory

from goldens.conformance import record, write


def make(folder: Path) -> None:
    """Write conformance_llamacpp.json into `folder`."""
    library = f"llama-cpp-python {llama_cpp.__version__}"
    write(folder, "llamacpp", record(library, factory, by_its_conventions))
