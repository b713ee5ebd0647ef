"""Where outliers are and what they cost: activations of a model in 4 and 8 bits.

    python tools/outliers.py MODEL.npz TEXT.txt

prints, for the inputs of some matrices of two blocks, the squared error of an int with
its ends kept and clipped, of ANT and of OliVe in 4 bits and of OliVe in 8, relative to
their mean square; then the divergence of the model with weights and inputs of 8 bits,
as it is and smoothed.  The text's first tokens are fitted to, its last ones judged.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # after what is installed

import npllama  # noqa: E402
from npllama.compression.ant import ant, points, search, to_ant  # noqa: E402
from npllama.compression.calibrate import HALVES, Inputs, inputs_of  # noqa: E402
from npllama.compression.folds import smoothed, w8a8  # noqa: E402
from npllama.compression.grid import from_codes  # noqa: E402
from npllama.compression.olive import olive, values  # noqa: E402
from npllama.compression.quality import divergence  # noqa: E402
from npllama.ops import Observer, observing  # noqa: E402

NAMES = ("q_proj", "o_proj", "gate_proj", "down_proj")
ALPHAS = (0.5, 0.75)


class Taker(Observer):
    """Keeps the inputs of some products in some blocks."""

    def __init__(self, blocks: tuple[int, ...]):
        self.places = {f"model.layers.{i}": i for i in blocks}
        self.at = ""
        self.found: dict[tuple[int, str], np.ndarray] = {}

    def enter(self, place):
        self.at = place

    def product(self, kind, a, b, y):
        if self.at in self.places and kind.name in NAMES:
            x = a.reshape(a.shape[0] * a.shape[1], -1)  # (T, S)
            self.found[self.places[self.at], kind.name] = x.astype(np.float64)


def logits(model, row: np.ndarray) -> np.ndarray:
    """Logits of a text, (1, T) to (1, T, V)."""
    cache = npllama.new_cache(model.config, 1, row.shape[1], model.embed.dtype.name)
    return npllama.forward(model, row, cache)


def errors(x: np.ndarray) -> list[float]:
    """Relative squared errors of one scale for all: four of 4 bits, one of 8."""
    flat = x.reshape(1, -1)
    even = points("int", 4)
    whole = search(flat, even, flat.size, (100,))[1]
    clipped = search(flat, even, flat.size)[1]
    _, grid = ant(x, 4, "tensor")
    kinds = ((from_codes(to_ant(flat, grid), grid) - flat) ** 2).sum()
    pairs = [((values(olive(x, bits, "tensor")) - x) ** 2).sum() for bits in (4, 8)]
    return [float(e / (x**2).sum()) for e in (whole, clipped, kinds, *pairs)]


def smoothed_model(model, rows: list[np.ndarray], alpha: float):
    """The model with activations that are easier to round."""
    layers, xs = [], [model.embed[row] for row in rows]
    for layer in model.layers:
        inputs: dict[str, Inputs] = {}
        stream = xs
        for half in HALVES:
            words = [word for stage in half.stages for word in stage]
            inputs |= inputs_of(words, half, stream, layer, model.config)
            stream = [half.run(x, layer, model.config) for x in stream]
        layers.append(smoothed(layer, inputs, alpha))
        xs = stream
    return model._replace(layers=tuple(layers))


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an .npz")
    parser.add_argument("text", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=(5, 15))
    parser.add_argument(
        "--tokens", type=int, default=256, help="of a row; of three rows"
    )
    args = parser.parse_args(argv)
    n = args.tokens
    model = npllama.load(args.model)
    ids = model.tokenizer.encode(args.text.read_text("utf-8"))
    if n < 2 or len(ids) < 3 * n:
        parser.error(f"{args.text}: {len(ids)} tokens; three rows of {n} are needed")
    rows = [np.array([ids[:n]]), np.array([ids[n : 2 * n]])]
    row = np.array([ids[-n:]])
    with observing(Taker(tuple(args.blocks))) as taker:
        exact = logits(model, row)
    print("block  input of   largest  int      clipped  ANT      OliVe    8 bits")
    for (block, name), x in taker.found.items():
        told = " ".join(f"{e:<8.2g}" for e in errors(x))
        sigmas = np.abs(x).max() / x.std()
        print(f"{block:5}  {name:9}  {sigmas:4.0f} sd  {told}", flush=True)
    models = {"as it is": model}
    models |= {f"alpha {a}": smoothed_model(model, rows, a) for a in ALPHAS}
    print("\nweights and inputs of 8 bits: divergence, a scale per token, per call")
    for name, other in models.items():
        apart = [
            divergence(exact, logits(w8a8(other, per), row)).mean()
            for per in (True, False)
        ]
        print(f"{name:10}", *(f"{x:.2g}" for x in apart), flush=True)


if __name__ == "__main__":
    main()
