"""Every fault of `faulty` on a model of a file: how often is it called by a wrong name?

    python tests/oracle/golden_names.py MODEL.npz --blocks 3 --ids 2048
    python tests/oracle/golden_names.py MODEL.npz --only "mask" "hidden" --dtypes float32

Each fault is made in the first blocks of the model, compared and diagnosed in four
views: all tensors, what hooks see, outputs of blocks, logits alone.  What is printed:
every wrong name; and by view, how many faults were outside, how many of those have a
name, and how many were called by it.
"""

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import faulty  # noqa: E402
import faulty_blind  # noqa: E402

from npllama.files.checkpoint import load  # noqa: E402
from npllama.golden.compare import compare  # noqa: E402
from npllama.golden.diagnose import diagnose  # noqa: E402
from npllama.golden.floor import floor  # noqa: E402
from npllama.golden.record import Wanted, run  # noqa: E402
from npllama.golden.scene import Scene  # noqa: E402

PROMPT, NEW = 20, 2  # as `faulty_blind` expects
LISTS = {"known": faulty.FAULTS, "blind": faulty_blind.FAULTS}


def part_of(path, blocks, ids, dtype):
    """The first blocks of a model, and its first ids; None is all of them."""
    model = load(path, dtype)
    layers, V = model.layers[:blocks], ids or model.config.vocab_size
    config = replace(model.config, num_hidden_layers=len(layers), vocab_size=V)
    embed, lm_head = model.embed[:V], model.lm_head[:V]
    return model._replace(config=config, layers=layers, embed=embed, lm_head=lm_head)


def traced(path, blocks, ids, dtypes, seed=0):
    """A model in float32 and a trace of random tokens, with a floor for each dtype."""
    exact = part_of(path, blocks, ids, "float64")
    plain = part_of(path, blocks, ids, "float32")
    tokens = np.random.default_rng(seed).integers(3, exact.config.vocab_size, PROMPT)
    golden: dict = {}
    wanted = Wanted(NEW, scores=True)
    run(exact, tokens[None], wanted, lambda n, x: golden.update({n: np.array(x)}))
    return plain, golden, {dtype: floor(golden, plain, dtype) for dtype in dtypes}


def scene_of(model, golden, floors, shown, dtype):
    """The first tensor outside, or None if all are within."""
    result = compare(golden, shown, floors, dtype)
    if result.first is None:
        return None
    return Scene(
        golden, shown, result.first, dtype, 2.0, model.config, model, result.rows
    )


def findings(model, golden, floors, dtype, fault, change, keys):
    """By view: None where all is within, else the key of the name ("" for none), and
    whether it is true."""
    with np.errstate(all="ignore"):
        candidate = faulty.run(model, golden["tokens"], PROMPT, dtype, change)
        for view, ends in faulty.VIEWS.items():
            shown = {n: x for n, x in candidate.items() if not ends or n.endswith(ends)}
            scene = scene_of(model, golden, floors, shown, dtype)
            finding = scene and diagnose(scene)
            true = faulty.is_true(fault, keys, scene, finding)
            yield view, scene and (finding.fault if finding else ""), true


def chosen(options):
    """The faults that were asked for, each with the keys that may name it."""
    for which in options.lists:
        for fault, (change, keys) in sorted(LISTS[which].items()):
            if not options.only or any(word in fault for word in options.only):
                yield fault, change, keys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL.npz")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--ids", type=int, metavar="V")
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--only", nargs="+", metavar="WORD")
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"]
    )
    options = parser.parse_args()
    sizes = options.blocks, options.ids
    model, golden, floors = traced(options.model, *sizes, options.dtypes)
    count: Counter = Counter()
    for fault, change, keys in chosen(options):
        for dtype in options.dtypes:
            if fault.endswith("in float32") and dtype != "float32":
                continue  # right in its own format
            found = findings(model, golden, floors[dtype], dtype, fault, change, keys)
            for view, key, true in found:
                count[view, "outside"] += key is not None
                count[view, "have a name"] += key is not None and bool(keys)
                count[view, "named"] += bool(key) and key in keys
                count[view, "wrong"] += not true
                if not true:
                    print("WRONG", fault, dtype, view, key, flush=True)
            print(fault, dtype, flush=True)
    for (view, what), n in count.items():
        print(f"{view}: {n} {what}")


if __name__ == "__main__":
    main()
