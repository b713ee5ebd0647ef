"""Record what transformers' assisted generation writes on tiny random models.

Greedy, with three drafts: a smaller model, prompt lookup, and early exit; and by
greedy search without any, as a control.  Needs transformers 5.23.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .tiny_models import EOS, Tiny, tiny, transformers_model, until_eos

FILE = "decoding_speculative.npz"
SEEDS = range(60)
MAX_NEW_TOKENS = 40
GUESSES = 4
DRAFTS = ("plain", "assisted", "prompt_lookup", "early_exit")


def case(seed: int) -> tuple[Tiny, Tiny]:
    """Target and assistant of a seed; the prompt repeats itself, for the lookup."""
    target, assistant = tiny(seed, layers=3), tiny(seed, layers=1)
    return target._replace(prompt=target.prompt * 2), assistant


def answers(seed: int) -> list[list[int]]:
    """New tokens with each draft."""
    import torch

    made, small = case(seed)
    target, assistant = transformers_model(made), transformers_model(small)
    # Without this, the assistant would adapt the number of its guesses.
    assistant.generation_config.num_assistant_tokens = GUESSES
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    drafts = {
        "plain": {},
        "assisted": {"assistant_model": assistant},
        "prompt_lookup": {"prompt_lookup_num_tokens": GUESSES},
        "early_exit": {"assistant_early_exit": 1},
    }
    prompt = torch.tensor([made.prompt])
    found = []
    for name in DRAFTS:
        with torch.no_grad():
            text = target.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                **drafts[name],
            )
        found.append(until_eos(text[0, len(made.prompt) :].tolist(), [EOS]))
    return found


def make(folder: Path) -> None:
    """Write decoding_speculative.npz into `folder`."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not transformers.__version__.startswith("5.23"):
        raise SystemExit(f"speculative: needs 5.23, found {transformers.__version__}")
    shape = len(SEEDS), len(DRAFTS), MAX_NEW_TOKENS
    tokens = np.full(shape, -1, dtype=np.int16)
    for seed in SEEDS:
        for i, text in enumerate(answers(seed)):
            tokens[seed, i, : len(text)] = text
    path = Path(folder) / FILE
    np.savez_compressed(path, tokens=tokens)
    print(f"{path}: {tokens.shape[0]} models, {tokens.shape[1]} drafts")
