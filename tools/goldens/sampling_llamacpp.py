"""Record what llama.cpp's samplers do to the inputs of the tests.

Driven through llama-cpp-python, without a model: a sampler there works on an
array of candidates (id, logit). Tokens that are removed already are left out of
it, because llama.cpp shortens the array where others write -inf.
"""

import ctypes
import sys
from pathlib import Path

import llama_cpp as cpp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import sampling_cases as cases  # noqa: E402

SAMPLERS = {
    "top_k 3": lambda size: cpp.llama_sampler_init_top_k(3),
    "top_p 0.9": lambda size: cpp.llama_sampler_init_top_p(0.9, 1),
    "min_p 0.05": lambda size: cpp.llama_sampler_init_min_p(0.05, 1),
    "typical_p 0.9": lambda size: cpp.llama_sampler_init_typical(0.9, 1),
    "top_n_sigma 1": lambda size: cpp.llama_sampler_init_top_n_sigma(1.0),
    "top_n_sigma 0.3": lambda size: cpp.llama_sampler_init_top_n_sigma(0.3),
    "xtc 0.1": lambda size: cpp.llama_sampler_init_xtc(1.0, 0.1, 1, 7),
    "xtc 0.03 keep 4": lambda size: cpp.llama_sampler_init_xtc(1.0, 0.03, 4, 7),
    "temperature 0.7": lambda size: cpp.llama_sampler_init_temp(0.7),
    "dynamic 1 0.5": lambda size: cpp.llama_sampler_init_temp_ext(1.0, 0.5, 1.0),
    "dynamic 1.5 1.2": lambda size: cpp.llama_sampler_init_temp_ext(1.5, 1.2, 0.7),
    "penalties": lambda size: _penalties(size),
    "dry 0.8": lambda size: cpp.llama_sampler_init_dry(None, 0.8, 1.75, 2, 64, None, 0),
    "dry 0.3 last 9": lambda size: cpp.llama_sampler_init_dry(
        None, 0.3, 2.5, 1, 9, None, 0
    ),
}
MIROSTATS = {
    "mirostat_1": lambda size: cpp.llama_sampler_init_mirostat(size, 7, 2.0, 0.3, 100),
    "mirostat_2": lambda size: cpp.llama_sampler_init_mirostat_v2(7, 2.0, 0.3),
}


def _penalties(size):
    # The first argument sizes a table of counts in newer versions.
    return cpp.llama_sampler_init_penalties(size, 8, 1.3, 0.4, 0.2)


def run(sampler, row):
    """Apply a sampler to one row; return the new row and the token selected."""
    ids = np.flatnonzero(row > -np.inf)
    data = (cpp.llama_token_data * ids.size)()
    for slot, i in zip(data, ids):
        slot.id, slot.logit, slot.p = int(i), float(row[i]), 0.0
    array = cpp.llama_token_data_array(data, ids.size, -1, False)
    cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    out = np.full_like(row, -np.inf)
    for i in range(array.size):
        out[array.data[i].id] = array.data[i].logit
    token = array.data[array.selected].id if array.selected >= 0 else -1
    return out, token


def answer(build, group):
    """Return the rows of a group after a fresh sampler that saw its tokens."""
    out = []
    for row, history in zip(group.logits, group.tokens):
        sampler = build(row.size)
        for token in history:
            cpp.llama_sampler_accept(sampler, int(token))
        out.append(run(sampler, row)[0])
        cpp.llama_sampler_free(sampler)
    return np.stack(out)


def replay(build, group):
    """Return the rows and the tokens of one text that goes through the group."""
    sampler = build(group.logits.shape[1])
    steps = [run(sampler, row) for row in group.logits]
    cpp.llama_sampler_free(sampler)
    return np.stack([row for row, _ in steps]), np.array([t for _, t in steps])


def make(folder):
    """Write sampling_llamacpp.npz into `folder`."""
    parts = cases.groups()
    arrays = {"checksum": np.array(cases.checksum(parts))}
    for name, build in SAMPLERS.items():
        outs = [answer(build, group) for group in parts]
        changed = [
            (out > -np.inf) & (out != group.logits) for out, group in zip(outs, parts)
        ]
        arrays |= {
            f"{name}/kept": _bits([out > -np.inf for out in outs]),
            f"{name}/changed": _bits(changed),
            f"{name}/values": np.concatenate(
                [out[new] for out, new in zip(outs, changed)]
            ),
        }
    for name, build in MIROSTATS.items():
        steps = [replay(build, group) for group in parts if group.logits.shape[1] > 1]
        arrays[f"{name}/kept"] = _bits([out > -np.inf for out, _ in steps])
        arrays[f"{name}/tokens"] = np.concatenate([tokens for _, tokens in steps])
    path = Path(folder) / "sampling_llamacpp.npz"
    beside = path.with_suffix(".tmp.npz")
    np.savez_compressed(beside, **arrays)
    beside.replace(path)


def _bits(masks):
    return np.concatenate([np.packbits(mask) for mask in masks])


if __name__ == "__main__":
    make(sys.argv[1])
