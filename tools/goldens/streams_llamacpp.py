"""Record llama.cpp's context shift, and its perplexity tool's number.

The shift is done as its server does: when the window is full, `n_discard` positions
after the first `n_keep` are removed, and those that follow are moved back, whose keys
llama.cpp turns before it computes the next token.  The server takes half of the rest;
one at a time is what StreamingLLM asks for.

The perplexity tool itself is a program that llama-cpp-python does not bring.  Its loop
is short (``tools/perplexity``, `perplexity`): windows of `n_ctx` tokens side by side,
the first token of each replaced by BOS, and the logits at `n_ctx` / 2 and after score
the tokens that follow them in the window.  Here it runs on llama.cpp's logits.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

from npllama.candidates.gguf_file import write_gguf

from .model_cases import CASES, Case, config_of, tensors_of, tokens_of

FILE = "streams_llamacpp.npz"
RECORDED = ("gqa", "mha", "linear", "yarn")
WINDOW = 19
SHIFTS = {"half": (3, 8), "one": (3, 1), "none_kept": (0, 9)}  # n_keep, n_discard
TOOL_CONTEXT, BOS = 14, 1


class LlamaCpp:
    """One model in float32, token by token."""

    def __init__(self, path: Path):
        self.quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        words = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(words)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_threads, options.n_threads_batch = 256, 1, 1
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        options.flash_attn_type = 0  # on a processor its sums are in half precision
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.length = 0

    def forget_all(self) -> None:
        """Begin a new text."""
        llama_cpp.llama_memory_clear(self.memory, True)
        self.length = 0

    def shift(self, keep: int, discard: int) -> None:
        """Remove positions after the first ones, and move back those that follow."""
        gone = keep + discard
        llama_cpp.llama_memory_seq_rm(self.memory, 0, keep, gone)
        llama_cpp.llama_memory_seq_add(self.memory, 0, gone, self.length, -discard)
        self.length -= discard

    def step(self, token: int) -> np.ndarray:
        """The logits after one more token, (V,) float32."""
        ids = (llama_cpp.llama_token * 1)(token)
        batch = llama_cpp.llama_batch_get_one(ids, 1)
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.length += 1
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,)).copy()


def shifted(model: LlamaCpp, tokens: list[int], keep: int, discard: int) -> np.ndarray:
    """Logits at every position of a text that outgrows its window, (T, V) float32."""
    model.forget_all()
    found = []
    for token in tokens:
        if model.length == WINDOW:
            model.shift(keep, discard)
        found.append(model.step(token))
    return np.stack(found)


def tool(model: LlamaCpp, tokens: list[int]) -> np.ndarray:
    """Surprise at every token that the perplexity tool counts, (n,) float64."""
    n_ctx, found = TOOL_CONTEXT, []
    first = n_ctx // 2
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        model.forget_all()
        window = [BOS, *tokens[start + 1 : start + n_ctx]]
        logits = np.stack([model.step(t) for t in window]).astype(np.float64)
        for j in range(first, n_ctx - 1):
            row = logits[j] - logits[j].max()
            found.append(np.log(np.exp(row).sum()) - row[window[j + 1]])
    return np.array(found)


def answers(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """All of one model."""
    path = folder / f"{case.name}.gguf"
    write_gguf(path, config_of(case), tensors_of(case, "float32"))
    model, tokens = LlamaCpp(path), tokens_of(case)[0].tolist()
    found = {
        f"{case.name}.{name}": shifted(model, tokens, *how)
        for name, how in SHIFTS.items()
    }
    return found | {f"{case.name}.perplexity": tool(model, tokens)}


def make(folder: Path) -> None:
    """Write streams_llamacpp.npz into `folder`."""
    golden: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            if case.name in RECORDED:
                golden |= answers(case, Path(scratch))
    path = Path(folder) / FILE
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} answers, {llama_cpp.__version__}")
