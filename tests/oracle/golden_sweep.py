"""Right backends and planted errors by the hundred: how often is the verdict wrong?

    python tests/oracle/golden_sweep.py right --count 500
    python tests/oracle/golden_sweep.py planted --count 300
    python tests/oracle/golden_sweep.py right --model MODEL.npz --count 20

`right` runs unmodified transformers (or the JAX page) on random models, most of them
with massive activations, and reports every tensor outside, and how close the others
came to their limits.  `planted` adds an error of three floors to one tensor, one
position or one head of a right run, and reports how often it is caught, there and
nowhere else.  The tests take a few of both; the figures in the package come from many.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent), str(TESTS.parent / "tools")]

from npllama.candidates.text import text_of  # noqa: E402
from npllama.config import Config, Rope  # noqa: E402
from npllama.files.checkpoint import load  # noqa: E402
from npllama.golden.compare import aligned, compare  # noqa: E402
from npllama.golden.distance import by_position, units  # noqa: E402
from npllama.golden.floor import NO_FLOOR, floor  # noqa: E402
from npllama.golden.measures import floors_of_spots  # noqa: E402
from npllama.golden.record import Wanted, run  # noqa: E402
from npllama.weights import Model, assemble, tensor_shapes  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16")
LENGTHS = (1, 1, 2, 3, 5, 8, 13, 20, 40, 100, 200)
HEADS = ((4, 4), (4, 2), (4, 1), (6, 2), (3, 3))
ROPES = (Rope(), Rope("linear", 1e4, 4.0), Rope("llama3", 5e5, 8.0, 16, 1.0, 4.0))
# Which matrix has one enormous row.
ENORMOUS = {
    "down": "mlp.down_proj",
    "out": "self_attn.o_proj",
    "sharp": "mlp.down_proj",
}
KINDS = ("plain", "down", "out", "gains", "sharp")


class Sample(NamedTuple):
    """A model in both precisions, and a trace in memory."""

    model: Model  # float32
    exact: Model
    golden: dict
    seed: int
    kind: str


def drawn_config(rng: np.random.Generator, wide: bool) -> Config:
    """Sizes of a small model, or of one that is 1,024 wide."""
    H, K = HEADS[rng.integers(len(HEADS))]
    D, F = int(rng.choice([8, 12, 16, 32])), int(rng.integers(60, 300))
    V, L = int(rng.integers(60, 300)), int(rng.integers(1, 5))
    if wide:
        H, K, D, F, L = 8, 4, 128, 1024, 2
    rope, tied = ROPES[rng.integers(len(ROPES))], bool(rng.integers(2))
    eps = float(rng.choice([1e-5, 1e-6]))
    return Config(V, H * D, F, L, H, K, D, 512, eps, rope, tied)


def drawn_tensors(rng: np.random.Generator, config: Config, kind: str):
    """Weights of one of the `KINDS`: one row times 50 to 1,000, gains of 0.03 to 30."""
    row, layer = (
        rng.integers(config.hidden_size),
        rng.integers(config.num_hidden_layers),
    )
    times = np.exp(rng.uniform(np.log(50), np.log(1000)))
    large = f"layers.{layer}.{ENORMOUS.get(kind)}.weight"
    odd = kind in ("gains", "sharp")
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            w = 1 + 0.3 * rng.standard_normal(shape)
            w *= np.exp(rng.uniform(np.log(0.03), np.log(30))) if odd else 1
        else:
            size = 0.03 if "embed" in name else 1 / np.sqrt(shape[-1])
            w = size * rng.standard_normal(shape)
        if odd and ("q_proj" in name or "k_proj" in name):
            w *= 4
        if name.endswith(large):
            w[row] *= times
        yield name, w.astype(np.float32)


def recorded(model: Model, exact: Model, tokens: np.ndarray, new: int) -> dict:
    """A golden trace in memory."""
    found = {}
    run(exact, tokens, Wanted(new), lambda n, x: found.update({n: np.array(x)}))
    return found


def drawn(seed: int) -> Sample:
    """A random model of any kind, and a trace of 1 to 200 positions."""
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % len(KINDS)]
    config = drawn_config(rng, wide=seed % 40 in (21, 38))
    weights = dict(drawn_tensors(rng, config, kind))
    model = assemble(config, weights)
    exact = assemble(config, {n: w.astype(np.float64) for n, w in weights.items()})
    tokens = rng.integers(0, config.vocab_size, (1, int(rng.choice(LENGTHS))))
    golden = recorded(model, exact, tokens, int(rng.integers(0, 3)))
    return Sample(model, exact, golden, seed, kind)


def loaded(path: str, seed: int, models={}) -> Sample:  # noqa: B006
    """A model of a file, and a trace of random tokens after the first of a text."""
    if path not in models:
        models[path] = load(path), load(path, "float64")
    model, exact = models[path]
    rng = np.random.default_rng(seed)
    T = int(rng.choice([1, 1, 2, 5, 12, 30]))
    tokens = rng.integers(3, model.config.vocab_size, (1, T))
    if seed % 2:
        tokens[0, 0] = 1
    golden = recorded(model, exact, tokens, int(rng.integers(0, 3)))
    return Sample(model, exact, golden, seed, "file")


def backend_run(name: str, sample: Sample, dtype: str) -> dict:
    """All tensors of another framework."""
    if name == "jax":
        from npllama.candidates import jax_llama as module
    else:
        from npllama.candidates import transformers_hooks as module
    return dict(module.run(sample.model, text_of(sample.golden), dtype))


# ---- right runs --------------------------------------------------------------------


def closeness(row) -> dict[str, float]:
    """A tensor's three measures, in floors."""
    if row.measures is None or not row.floor:
        return {}
    found = {"error": row.measures.error / row.floor}
    if row.evenness.even_floor:
        found["even"] = row.evenness.even_error / row.evenness.even_floor
        found["spot"] = row.evenness.spot_floors
        found["lean"] = abs(row.evenness.even_lean) / row.evenness.even_floor
    return found


def right_runs(samples, backend: str, dtypes=DTYPES):
    """Every run, its tensors outside, and the closest to each limit."""
    for sample in samples:
        dtype = dtypes[sample.seed // len(KINDS) % len(dtypes)]
        candidate = backend_run(backend, sample, dtype)
        floors = floor(sample.golden, sample.model, dtype)
        result = compare(sample.golden, candidate, floors, dtype)
        largest: dict[str, tuple[float, str]] = {}
        for row in result.rows:
            for key, x in closeness(row).items():
                if not (key == "lean" and dtype == "float32"):
                    largest[key] = max(largest.get(key, (0.0, "")), (x, row.name))
        outside = [row for row in result.rows if row.verdict == "outside"]
        yield sample, dtype, outside, largest


# ---- planted errors ----------------------------------------------------------------


def planted(sample: Sample, floors, y: np.ndarray, name: str, where: str, rng):
    """A tensor with an error of three floors in all of it, a position or a head."""
    exact = sample.golden[name].astype(np.float64)
    unit = units(by_position(name, exact))  # (P, H, N)
    noise = rng.standard_normal(unit.shape)  # (P, H, N)
    limits = floors_of_spots(floors, unit.shape)[..., None]  # (P, H, 1)
    if where == "tensor":
        size = np.sqrt(np.square(exact).sum() / np.square(noise).sum())
        wrong = by_position(name, exact) + 3 * floors["rms"] * size * noise
    else:
        noise /= np.sqrt(np.square(noise).mean(axis=-1, keepdims=True))
        chosen = np.zeros(unit.shape[:2] + (1,))
        head = slice(None) if where == "position" else rng.integers(unit.shape[1])
        # Where all right arithmetic overflows, three floors are no number.
        chosen[
            rng.choice(np.flatnonzero((limits < NO_FLOOR).all(axis=(1, 2)))), head
        ] = 1
        right = by_position(name, aligned(name, y, exact).astype(np.float64))
        spoilt = by_position(name, exact) + 3 * limits * unit * noise
        wrong = np.where(chosen > 0, spoilt, right)
    if exact.ndim == 4:
        return wrong.reshape(exact.shape)
    return wrong.reshape(exact.shape)


def planted_runs(samples, backend: str, dtypes=DTYPES):
    """For every run: where an error was planted, and the first tensor outside."""
    for sample in samples:
        rng = np.random.default_rng(sample.seed)
        dtype = dtypes[sample.seed // len(KINDS) % len(dtypes)]
        candidate = backend_run(backend, sample, dtype)
        floors = floor(sample.golden, sample.model, dtype)
        names = [n for n in candidate if "/" in n and 0 < floors[n]["rms"] < NO_FLOOR]
        for where in ("tensor", "position", "head"):
            name = names[rng.integers(len(names))]
            if where == "head":
                headed = [n for n in names if "heads" in floors[n]]
                name = headed[rng.integers(len(headed))]
            y = planted(sample, floors[name], candidate[name], name, where, rng)
            result = compare(sample.golden, candidate | {name: y}, floors, dtype)
            yield sample, dtype, where, name, result.first


# ---- the command -------------------------------------------------------------------


def samples_of(options):
    """The samples that were asked for, one after the other."""
    for seed in range(options.first, options.first + options.count):
        yield loaded(options.model, seed) if options.model else drawn(seed)


def report_right(options) -> None:
    """Print every false alarm, and the closest of all."""
    runs = alarms = 0
    closest: dict = {}
    for sample, dtype, outside, largest in right_runs(
        samples_of(options), options.backend, options.dtypes
    ):
        runs += 1
        alarms += bool(outside)
        for row in outside[:1]:
            print(sample.seed, sample.kind, dtype, row.name, row.note, len(outside))
        for key, (x, name) in largest.items():
            found = (x, name, sample.seed, sample.kind)
            closest[dtype, key] = max(closest.get((dtype, key), (0.0,)), found)
    print(f"{alarms} false alarms in {runs} right runs of {options.backend}")
    for key, found in sorted(closest.items()):
        print(*key, *found)


def report_planted(options) -> None:
    """Print how many planted errors were caught at their tensor."""
    caught: Counter = Counter()
    total: Counter = Counter()
    for sample, dtype, where, name, first in planted_runs(
        samples_of(options), options.backend, options.dtypes
    ):
        total[where] += 1
        right = first is not None and first.name == name
        caught[where] += right
        if not right:
            print(sample.seed, sample.kind, dtype, where, name, first and first.name)
    for where in total:
        print(f"{where}: {caught[where]} of {total[where]} caught at their tensor")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("right", "planted"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument(
        "--backend", choices=("transformers", "jax"), default="transformers"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--model", metavar="MODEL.npz")
    options = parser.parse_args()
    np.seterr(all="ignore")
    {"right": report_right, "planted": report_planted}[options.what](options)


if __name__ == "__main__":
    main()
