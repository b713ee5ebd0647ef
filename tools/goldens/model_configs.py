"""Record the config.json that transformers writes for every configuration.

4.49 writes `rope_theta` and `rope_scaling`, 5.23 `rope_parameters`, and both leave
out what they hold for a default.  Run it once with each version: a run replaces
only what its version wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from .model_cases import CASES

FILE = "model_configs.json"


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration as transformers 4 takes it."""
    if "rope_parameters" not in config:
        return config
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    if scaling["rope_type"] != "default":
        config["rope_scaling"] = scaling
    return config


def text(config: dict[str, Any]) -> str:
    """What `save_pretrained` writes as config.json."""
    if transformers.__version__.startswith("4."):
        config = old_spelling(config)
    made = transformers.LlamaConfig(**config, architectures=["LlamaForCausalLM"])
    return made.to_json_string()


def make(folder: Path) -> None:
    """Write model_configs.json into `folder`."""
    transformers.logging.set_verbosity_error()
    version = ".".join(transformers.__version__.split(".")[:2])
    path = Path(folder) / FILE
    golden = json.loads(path.read_text()) if path.exists() else {}
    golden[version] = {case.name: text(case.config) for case in CASES}
    path.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    print(f"{path}: {len(CASES)} files of transformers {transformers.__version__}")
