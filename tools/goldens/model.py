"""Record the logits of transformers' LlamaForCausalLM, and its greedy texts.

float32 is the unmodified model.  A float64 model of transformers is good to 1e-7
only, because three islands in it stay float32: RMSNorm, the softmax of attention,
and the rotary tables.  All three ask for ``torch.float32`` or ``torch.float`` by
name, in two modules; `lifted` lets these two modules see a torch in which both names
mean float64, makes float64 the default besides (dynamic RoPE computes its theta in
that), and changes nothing else.

Every row is run alone.  A padded batch gives the same up to rounding, which
tests/oracle checks, but not where RoPE is dynamic: transformers turns all rows at
the speed of the longest, npllama each at its own, so that no row depends on others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, modeling_rope_utils
from transformers.models.llama import modeling_llama

from .model_cases import (
    CASES,
    GREEDY_CASES,
    GREEDY_TOKENS,
    PROMPT,
    Case,
    lengths_of,
    pieces,
    runs_of,
    stored,
    tensors_of,
    tokens_of,
)

FILE = "model.npz"


class Torch64:
    """torch, except that its float32 is float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` torch's default inside the ``with`` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def lifted() -> Iterator[None]:
    """Build and run models whose three float32 islands are float64."""
    modules = (modeling_llama, modeling_rope_utils)
    try:
        for module in modules:
            module.torch = Torch64()
        with default(torch.float64):
            yield
    finally:
        for module in modules:
            module.torch = torch


def build(case: Case, dtype: str) -> LlamaForCausalLM:
    """The case's model, with the weights that npllama gets."""
    with default(getattr(torch, dtype)):
        config = LlamaConfig(**case.config, attn_implementation="eager")
        model = LlamaForCausalLM(config).eval()
    state = {n: torch.from_numpy(t) for n, t in tensors_of(case, dtype).items()}
    missing = set(model.state_dict()) - set(state) - {"lm_head.weight"}
    assert not missing, missing
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model


@torch.no_grad()
def logits(case: Case, dtype: str, text: np.ndarray, run: str) -> np.ndarray:
    """Logits of one text, fed to the model piece by piece through its cache.

    Parameters
    ----------
    text : (T,) int64
    run : "whole", "chunks" or "steps"

    Returns
    -------
    (T, V) float
    """
    # A new model each time: with dynamic scaling it remembers the longest text.
    model, cache, parts = build(case, dtype), None, []
    for piece in pieces(run, len(text)):
        tokens = torch.from_numpy(text[None, piece])
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits[0])
    return torch.cat(parts).numpy()


def answers(case: Case, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and logits of all that is stored of a case, in one dtype."""
    for r, length in enumerate(lengths_of(case)):
        text = tokens_of(case)[r, :length]
        for run in runs_of(case):
            found = logits(case, dtype, text, run)[stored(case, length)]
            yield f"{case.name}/{dtype}/{r}/{run}", found


@torch.no_grad()
def greedy(case: Case) -> tuple[np.ndarray, float]:
    """What `generate` writes in float32 after a short prompt.

    Returns
    -------
    tokens : (200,) int64
    margin : float
        The smallest lead of a chosen token over the next best, in units of the
        logits' range: where it is far above rounding, the text is no accident.
    """
    endless = case._replace(config=case.config | {"eos_token_id": None})
    prompt = torch.from_numpy(tokens_of(case)[:1, :PROMPT])
    out = build(endless, "float32").generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=GREEDY_TOKENS,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    scores = torch.cat(out.logits)
    best = scores.topk(2).values
    margin = (best[:, 0] - best[:, 1]).min() / (scores.max() - scores.min())
    return out.sequences[0, PROMPT:].numpy(), float(margin)


def checksum(case: Case) -> np.ndarray:
    """SHA-256 of the weights, so that a changed recipe is noticed."""
    tensors = tensors_of(case, "float32")
    content = b"".join(t.tobytes() for t in tensors.values())
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def make(folder: Path) -> None:
    """Write model.npz into `folder`."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    golden = {}
    for case in CASES:
        golden |= answers(case, "float32")
        with lifted():
            golden |= answers(case, "float64")
        golden[f"{case.name}/weights"] = checksum(case)
    for case in GREEDY_CASES:
        tokens, margin = greedy(case)
        golden[f"{case.name}/tokens"] = tokens.astype(np.int16)
        golden[f"{case.name}/margin"] = np.float32(margin)
        golden[f"{case.name}/weights"] = checksum(case)
    path = Path(folder) / FILE
    np.savez_compressed(path, **golden)
    print(
        f"{path}: {len(CASES)} configurations of transformers {transformers.__version__}"
    )
