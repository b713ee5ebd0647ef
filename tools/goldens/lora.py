"""Adapters beside their base, as PEFT runs them: alone, and several in one batch."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .tiny_models import tiny, transformers_model

FILE, SEED = "lora.npz", 5
# Alpha is never equal to the rank.
CASES: dict[str, dict] = {
    "plain": dict(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj", "o_proj"]),
    "stabilised": dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["k_proj", "down_proj"]
    ),
    "patterns": dict(
        r=2,
        lora_alpha=5,
        target_modules=["q_proj", "o_proj", "gate_proj", "up_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 4, "up_proj": 3},
        alpha_pattern={r".*\.0\..*o_proj": 11},
    ),
}
MIXED = ["stabilised", "", "plain", "patterns", "plain"]  # of the rows of a batch
TOKENS = (len(MIXED), 7)


def tokens_of() -> np.ndarray:
    """The batch that every model reads: (B, T) int64."""
    V = tiny(SEED).config["vocab_size"]
    return np.random.default_rng(SEED).integers(0, V, TOKENS)


def make(folder: Path) -> None:
    """Write lora.npz into `folder`."""
    import peft
    import torch
    from safetensors.numpy import load_file

    chance = np.random.default_rng(0)
    model = transformers_model(tiny(SEED))
    for name, case in CASES.items():
        config = peft.LoraConfig(**case)
        if isinstance(model, peft.PeftModel):
            model.add_adapter(name, config)
        else:
            model = peft.get_peft_model(model, config, adapter_name=name)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            drawn = 0.4 * chance.normal(size=parameter.shape)
            parameter.data = torch.from_numpy(drawn.astype(np.float32))
    found: dict[str, np.ndarray] = {}
    model.eval()
    tokens = torch.from_numpy(tokens_of())
    with TemporaryDirectory() as place, torch.no_grad():
        model.save_pretrained(place)
        for name in CASES:
            own = Path(place) / name
            settings = json.loads((own / "adapter_config.json").read_text())
            found[f"{name}.json"] = np.array(json.dumps(settings))
            for tensor, values in load_file(own / "adapter_model.safetensors").items():
                found[f"{name}:{tensor}"] = values
            model.set_adapter(name)
            found[f"{name}.logits"] = model(tokens).logits.numpy()
        names = [name or "__base__" for name in MIXED]
        found["mixed.logits"] = model(tokens, adapter_names=names).logits.numpy()
    np.savez_compressed(Path(folder) / FILE, **found)
    print(f"{Path(folder) / FILE}: {len(CASES)} adapters")
