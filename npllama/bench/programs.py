"""The programs that are timed on a whole model: npllama, and its peers.

All of them compute the same function of the same weights, which lie in one
``.npz``; `measure` compares their logits before it believes their times.  Each
program comes in one or two variants (the way attention is computed, or for
npllama the floor below it), which are timed in turn.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from npllama.bench.worker import interleaved, memory, seconds
from npllama.ops import Kind, Observer

CAPACITY = 512


class Program:
    """What can be asked of a program; a subclass says how it computes."""

    name = ""
    variants: tuple[str, ...] = ()

    def prefill(self, variant: str, tokens: np.ndarray) -> np.ndarray:
        """Forget everything, read a prompt, return the logits after it, (V,)."""
        raise NotImplementedError

    def step(self, variant: str, token: int) -> np.ndarray:
        """Read one more token, return the logits after it, (V,)."""
        raise NotImplementedError

    def hello(self) -> dict[str, Any]:
        """Say who is there."""
        return {"name": self.name, "variants": self.variants}

    def logits(self, tokens: list[int], path: str) -> dict[str, Any]:
        """Write every variant's logits after a prompt and one more token."""
        for variant in self.variants:
            if variant != "floor":
                self.prefill(variant, np.array(tokens[:-1]))
                np.save(f"{path}.{variant}.npy", self.step(variant, tokens[-1]))
        return {}

    def time_prefill(self, tokens: list[int], repeats: int) -> dict[str, list]:
        """Seconds of reading a whole prompt, for each variant."""
        prompt = np.array(tokens)
        return interleaved(
            {v: lambda v=v: self.prefill(v, prompt) for v in self.variants}, repeats
        )

    def time_decode(self, context: list[int], steps: int) -> dict[str, list]:
        """Seconds of each of `steps` single tokens after a context."""
        for variant in self.variants:
            self.prefill(variant, np.array(context))
        return interleaved(
            {v: lambda v=v: self.step(v, context[0]) for v in self.variants}, steps
        )

    def first_token(self, context: list[int]) -> dict[str, Any]:
        """Read a prompt: with the start of this process, what a fresh one takes."""
        self.prefill(self.variants[0], np.array(context))
        return {}

    def memory(self) -> dict[str, int]:
        """Resident bytes, now and at the peak."""
        return memory()


class Products(Observer):
    """An observer that keeps the products of a pass with weights, to redo them alone.

    All of npllama's weights have their output axes first, and `a` the summed axes
    last, so each product is one matrix product of (rows, in) with (out, in).
    """

    def __init__(self) -> None:
        self.operands: list[tuple[np.ndarray, np.ndarray]] = []
        self.rows: dict[tuple[int, int], np.ndarray] = {}

    def product(self, kind: Kind, a, b, y) -> None:
        """Keep a product, unless it is one of attention's, which has no weights."""
        if kind.name not in ("scores", "values"):
            B, T = a.shape[:2]
            a = a.reshape(B * T, -1)
            a = self.rows.setdefault(a.shape, np.ones_like(a))
            self.operands.append((a, b.reshape(-1, a.shape[1]).T))

    def run(self) -> np.ndarray:
        """Redo them, in order."""
        for a, b in self.operands:
            y = np.matmul(a, b)
        return y[-1]


class NpLlama(Program):
    """This project, and below it the BLAS floor: its matrix products alone."""

    name = "npllama"
    variants = ("forward", "floor")

    def __init__(self, threads: int, path: str):
        # Imported first, so that loading a model is all that is timed.
        from npllama import cache, model, ops
        from npllama.files import checkpoint

        self.ops, self.forward = ops, model.forward
        self.loading: dict[str, Any] = {"before": memory()}
        self.loading["seconds"] = seconds(
            lambda: setattr(self, "m", checkpoint.load(path))
        )
        self.loading["after"] = memory()
        self.cache = cache.new_cache(self.m.config, 1, CAPACITY)
        self.floors: dict[int, Products] = {}

    def load(self) -> dict[str, Any]:
        """What loading took, and the first token, which touches every weight."""
        tokens = np.array([[1]])
        self.loading["first_token"] = seconds(
            lambda: self.forward(self.m, tokens, self.cache, last=True)
        )
        return self.loading | {"touched": memory()}

    def prefill(self, variant: str, tokens: np.ndarray) -> np.ndarray:
        if variant == "floor":
            return self._floor(tokens).run()
        self.cache.length[:] = 0
        return self.forward(self.m, tokens[None], self.cache, last=True)[0, -1]

    def step(self, variant: str, token: int) -> np.ndarray:
        if variant == "floor":
            return self._floor(np.array([token])).run()
        return self.forward(self.m, np.array([[token]]), self.cache, last=True)[0, -1]

    def _floor(self, tokens: np.ndarray) -> Products:
        """The products of a pass over so many tokens, kept from the first one."""
        if len(tokens) not in self.floors:
            self.floors[len(tokens)] = Products()
            length = self.cache.length.copy()
            with self.ops.observing(self.floors[len(tokens)]):
                self.forward(self.m, tokens[None], self.cache, last=True)
            self.cache.length[:] = length
        return self.floors[len(tokens)]


class Torch(Program):
    """Hugging Face transformers on torch, as its users call it."""

    variants = ("sdpa", "eager")

    def __init__(self, threads: int, path: str):
        import torch
        import transformers
        from transformers.models.llama import modeling_llama as llama

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.name = f"transformers {transformers.__version__}"
        with np.load(path) as file:
            data = json.loads(file["config.json"])
            names = [n for n in file.files if not n.endswith(".json")]
            state = {name: torch.from_numpy(file[name]) for name in names}
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
        self.models, self.caches = {}, {}
        for variant in self.variants:
            config = llama.LlamaConfig(**data)
            config._attn_implementation = variant
            # Made without memory, then given the arrays themselves: no copy.
            with torch.device("meta"):
                model = llama.LlamaForCausalLM(config)
            model.load_state_dict(state, assign=True)
            model.model.rotary_emb = llama.LlamaRotaryEmbedding(config)
            self.models[variant] = model.eval()

    def prefill(self, variant: str, tokens: np.ndarray) -> np.ndarray:
        self.caches[variant] = None
        return self._run(variant, self.torch.from_numpy(tokens[None]))

    def step(self, variant: str, token: int) -> np.ndarray:
        return self._run(variant, self.torch.tensor([[token]]))

    def _run(self, variant: str, ids) -> np.ndarray:
        out = self.models[variant](
            ids,
            past_key_values=self.caches[variant],
            use_cache=True,
            logits_to_keep=1,
        )
        self.caches[variant] = out.past_key_values
        return out.logits[0, -1].numpy()


def as_gguf(source: str, target: Path) -> None:
    """Write a model as a GGUF file."""
    # Here, so that other programs are measured without npllama in memory.
    from npllama.candidates.gguf_file import write_gguf
    from npllama.candidates.text import named_weights
    from npllama.files.checkpoint import load

    model = load(source)
    write_gguf(target, model.config, named_weights(model))


class LlamaCpp(Program):
    """llama.cpp through llama-cpp-python, in float32; no sampling, no Python loop."""

    variants = ("plain", "flash")

    def __init__(self, threads: int, path: str):
        import llama_cpp

        self.api = api = llama_cpp
        self.name = f"llama-cpp-python {api.__version__}"
        self.quiet = api.llama_log_callback(lambda level, text, data: None)
        api.llama_log_set(self.quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        file = Path(path).with_suffix(".gguf")
        if not file.exists():
            as_gguf(path, file)
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        self.m = api.llama_model_load_from_file(os.fsencode(file), options)
        words = api.llama_model_get_vocab(self.m)
        self.vocabulary = api.llama_vocab_n_tokens(words)
        self.contexts = {v: self._context(v, threads) for v in self.variants}

    def _context(self, variant: str, threads: int):
        options = self.api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = CAPACITY
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = int(variant == "flash")
        options.type_k = options.type_v = self.api.GGML_TYPE_F32
        return self.api.llama_init_from_model(self.m, options)

    def prefill(self, variant: str, tokens: np.ndarray) -> np.ndarray:
        memory = self.api.llama_get_memory(self.contexts[variant])
        self.api.llama_memory_clear(memory, False)
        return self._run(variant, tokens.tolist())

    def step(self, variant: str, token: int) -> np.ndarray:
        return self._run(variant, [token])

    def _run(self, variant: str, tokens: list[int]) -> np.ndarray:
        ids = (self.api.llama_token * len(tokens))(*tokens)
        batch = self.api.llama_batch_get_one(ids, len(tokens))
        context = self.contexts[variant]
        if self.api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        # Only the last token's logits are computed; asking for them waits for them.
        logits = self.api.llama_get_logits_ith(context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,))


PROGRAMS = {"npllama": NpLlama, "torch": Torch, "llama.cpp": LlamaCpp}
