"""transformers: forward hooks on an unmodified LlamaForCausalLM.

Its modules have the names of a trace already.  Three things are no module's result:
the residual stream after attention is what the second norm is given, what the heads
return is what `o_proj` is given, and turned queries and keys are the two results of a
function, which is wrapped while the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from npllama.candidates.text import Named, Text, named_weights
from npllama.config import config_to_hf
from npllama.weights import Model

DTYPES = ("float32", "bfloat16", "float16")
# Modules whose result is a tensor of the trace, by the end of their names.
RESULTS = ("embed_tokens", "layernorm", "_proj", "act_fn", "model.norm", "lm_head")


def build(model: Model, dtype: str) -> LlamaForCausalLM:
    """The same model in transformers, every weight rounded to `dtype`."""
    if dtype not in DTYPES:
        raise ValueError(f"transformers runs in {', '.join(DTYPES)}, not {dtype!r}")
    E, H = model.config.hidden_size, model.config.num_attention_heads
    if E % H:
        raise ValueError(f"transformers takes no hidden_size {E} with {H} heads")
    numbers = config_to_hf(model.config) | {"attn_implementation": "eager"}
    net = LlamaForCausalLM(LlamaConfig(**numbers)).eval()
    # Not net.to(dtype): that also rounds a buffer, the speeds of RoPE, which a model
    # loaded in this dtype keeps in float32.  Far positions would turn by wrong angles.
    for parameter in net.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    state = {n: torch.from_numpy(w.copy()) for n, w in named_weights(model).items()}
    net.load_state_dict(state, strict=False)
    net.tie_weights()
    return net


def plain(tensor) -> np.ndarray:
    """A torch tensor, or the first of several, as a float32 array of its own."""
    tensor = tensor[0] if isinstance(tensor, tuple) else tensor
    return tensor.detach().float().numpy().copy()


class Watch:
    """Collects the tensors of one step, in the order in which they are computed."""

    def __init__(self) -> None:
        self.seen: dict[str, np.ndarray] = {}
        self.layer = ""  # the attention that is being computed

    def result(self, name: str):
        """A hook that keeps what a module returns under `name`."""

        def hook(module, inputs, output):
            self.seen[name] = plain(output)

        return hook

    def given(self, name: str):
        """A hook that keeps what a module is given under `name`."""

        def hook(module, inputs):
            self.seen[name] = plain(inputs)

        return hook

    def enter(self, name: str):
        """A hook that remembers which attention comes next."""

        def hook(module, inputs, options):
            self.layer = name

        return hook

    def turned(self, q, k) -> None:
        """Keep queries and keys, (B, H, T, D), with the heads after the positions."""
        for name, x in (("q_rope", q), ("k_rope", k)):
            self.seen[f"{self.layer}.{name}"] = plain(x.transpose(1, 2))

    def attach(self, net: LlamaForCausalLM) -> None:
        """Put hooks on all modules of a model."""
        for name, module in net.named_modules():
            stem = name.rpartition(".")[0]
            if name.endswith("post_attention_layernorm"):
                module.register_forward_pre_hook(self.given(f"{stem}.post_attention"))
            if name.endswith("o_proj"):
                module.register_forward_pre_hook(self.given(f"{stem}.attention"))
            if name.endswith("self_attn"):
                module.register_forward_pre_hook(self.enter(name), with_kwargs=True)
            if name.endswith(RESULTS):
                module.register_forward_hook(self.result(name))
            if stem == "model.layers":
                module.register_forward_hook(self.result(f"{name}.output"))


@contextmanager
def watching_rope(watch: Watch) -> Iterator[None]:
    """Show `watch` the results of transformers' rotary function."""
    real = modeling_llama.apply_rotary_pos_emb

    def shown(*args, **options):
        q, k = real(*args, **options)
        watch.turned(q, k)
        return q, k

    modeling_llama.apply_rotary_pos_emb = shown
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = real


def stacked(cache) -> Named:
    """The cache as two arrays, (L, B, K, S, D)."""
    if hasattr(cache, "layers"):
        pairs = [(layer.keys, layer.values) for layer in cache.layers]
    else:  # before transformers 4.54
        pairs = list(zip(cache.key_cache, cache.value_cache))
    for name, tensors in zip(("cache.k", "cache.v"), zip(*pairs)):
        yield name, np.stack([plain(t) for t in tensors])


@torch.no_grad()
def run_net(net: LlamaForCausalLM, text: Text) -> Named:
    """Run a model of transformers on the text, showing every tensor."""
    watch, cache = Watch(), None
    watch.attach(net)
    with watching_rope(watch):
        for step, tokens in text.pieces():
            watch.seen.clear()
            out = net(torch.from_numpy(tokens), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            for name, array in watch.seen.items():
                yield f"{step.name}/{name}", array
    yield from stacked(cache)


def run(model: Model, text: Text, dtype: str = "float32") -> Named:
    """Every tensor of transformers' model with these weights, in `dtype`.

    Yields
    ------
    (name, array) pairs; arrays are float32, whatever numbers they hold

    Raises
    ------
    ValueError
        If `dtype` is not one of `DTYPES`.
    """
    yield from run_net(build(model, dtype), text)
