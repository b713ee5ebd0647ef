"""Record what contrastive search and DoLa write in transformers 4.49.

Later versions of transformers gave both up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .tiny_models import EOS, Tiny, tiny, transformers_model, until_eos

FILE = "decoding_contrastive.npz"
EMBED = "model.embed_tokens.weight"
SEEDS = range(60)
MAX_NEW_TOKENS = 24
SEARCHES: dict[str, dict] = {
    "alpha 0.6, k 4": {"penalty_alpha": 0.6, "top_k": 4},
    "alpha 0.3, k 7": {"penalty_alpha": 0.3, "top_k": 7},
    "alpha 0.9, k 2, penalty": {
        "penalty_alpha": 0.9,
        "top_k": 2,
        "repetition_penalty": 1.3,
    },
}
CONTRASTS: dict[str, dict] = {
    "low": {"dola_layers": "low"},
    "high": {"dola_layers": "high"},
    "list": {"dola_layers": [0, 1, 3]},
    "high, penalty": {"dola_layers": "high", "repetition_penalty": 1.2},
}
SETTINGS = {**SEARCHES, **CONTRASTS}


def case(seed: int) -> Tiny:
    """Model and prompt of a seed: 4 to 7 layers, every third with tied embeddings."""
    made = tiny(seed, layers=4 + seed % 4)
    if seed % 3:
        return made
    tensors = {**made.tensors, "lm_head.weight": made.tensors[EMBED]}
    return made._replace(
        config={**made.config, "tie_word_embeddings": True}, tensors=tensors
    )


def answer(model, prompt: list[int], setting: dict) -> list[int]:
    """The new tokens that transformers finds."""
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        text = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            **setting,
        )
    return until_eos(text[0, len(prompt) :].tolist(), [EOS])


def make(folder: Path) -> None:
    """Write decoding_contrastive.npz into `folder`."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not transformers.__version__.startswith("4.49"):
        raise SystemExit(f"contrastive: needs 4.49, found {transformers.__version__}")
    shape = len(SEEDS), len(SETTINGS), MAX_NEW_TOKENS
    tokens = np.full(shape, -1, dtype=np.int16)
    for seed in SEEDS:
        made = case(seed)
        model = transformers_model(made)
        for i, setting in enumerate(SETTINGS.values()):
            text = answer(model, made.prompt, setting)
            tokens[seed, i, : len(text)] = text
    path = Path(folder) / FILE
    np.savez_compressed(path, tokens=tokens)
    print(f"{path}: {tokens.shape[0]} models, {tokens.shape[1]} settings")
