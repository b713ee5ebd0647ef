"""Every shape comment and every documented shape and dtype of Part I is true."""

import ast
import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from chapters import ARRAYS, load, source_of
from shapecheck import Checks, ShapeError
from strategies import DISTINCT, random_model, token_ids

from npllama.config import Rope
from npllama.weights import tensor_shapes

ROPES = [
    Rope(),
    Rope("linear", factor=2.0),
    Rope("dynamic", factor=2.0),
    Rope("yarn", 10000.0, 4.0, 64),
    Rope("llama3", 10000.0, 8.0, 64, 1.0, 4.0),
    Rope("longrope", 1e4, 2.0, 4, short_factor=(1.0, 2.0), long_factor=(3.0, 4.0)),
]


def use_every_chapter(chapters, folder, dtype):
    """Everything that Part I does with arrays, once."""
    run_every_rope(chapters, dtype)
    for stored in ("float32", "float16", "float64", "bfloat16"):
        store_and_load(chapters, folder / f"{stored}.npz", stored, dtype)

    x = np.ones((2, 5, 3, 4), dtype=dtype)
    config, at = own_config(chapters, DISTINCT), np.arange(10).reshape(2, 5)
    chapters.rope.rotate_neighbours(x, *chapters.rope.rope_tables(config, at, dtype))
    chapters.rope.halves_order(4)
    for bend in chapters.feedforward.ACTIVATIONS.values():
        bend(x)


def run_every_rope(chapters, dtype):
    """Forward passes with every way to encode positions, with biases and without."""
    plain = replace(DISTINCT, attention_bias=False, mlp_bias=False)
    for i, rope in enumerate(ROPES):
        config = replace([DISTINCT, plain][i % 2], rope=rope, max_position_embeddings=4)
        run_ragged(chapters, own_config(chapters, config), dtype)


def own_config(chapters, config):
    """The same numbers in the copy's own class."""
    return chapters.config.config_from_hf(chapters.config.config_to_hf(config))


def run_ragged(chapters, config, dtype):
    """Prefill of unequal rows in small blocks, chunks, padding, single tokens."""

    def in_blocks(q, k, v, start):
        return chapters.attention.blocked(q, k, v, start, 2, 3, 1)

    arrays = random_model(config, 0, dtype)
    layers = tuple(chapters.weights.Layer(*layer) for layer in arrays.layers)
    model = chapters.weights.Model(
        config, arrays.embed, layers, arrays.norm, arrays.lm_head
    )
    for attend in (in_blocks, chapters.attention.dense, chapters.attention.naive):
        cache = chapters.cache.new_cache(config, 2, 20, dtype)
        for T, count in [(5, [5, 2]), (5, [1, 5]), (5, None), (1, None)]:
            tokens = token_ids(config, 0, 2, T)
            last, count = bool(count), count and np.array(count)
            chapters.model.forward(
                model, tokens, cache, count, last=last, attend=attend
            )
    at = cache.length[:, None] + np.arange(2)
    chapters.model.forward(model, token_ids(config, 0, 2, 2), cache, positions=at)
    # Scores that grow force the running softmax to change its peak.
    q = np.ones((1, 1, 2, 2), dtype=dtype)
    k = np.arange(9, dtype=dtype)[:, None].repeat(2, axis=1)[None, None]
    in_blocks(q, k, k, np.array([8]))


def store_and_load(chapters, path, stored, dtype):
    """Write a model and read it back."""
    files, rng = chapters.checkpoint, np.random.default_rng(0)
    config = own_config(chapters, DISTINCT)

    def tensors():
        for name, shape in tensor_shapes(DISTINCT).items():
            values = rng.standard_normal(shape).astype(np.float32)
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
            yield name, bits if stored == "bfloat16" else values.astype(stored)

    files.save(str(path), config, tensors(), dtype=stored, metadata={}, files={})
    files.load(path, dtype)


@lru_cache
def checked_run(dtype, folder):
    """One run of everything, all claims switched on."""
    checks = Checks(ARRAYS, dtype)
    use_every_chapter(checks.modules, folder, dtype)
    return checks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_claim_about_a_shape_or_dtype_is_true_and_was_tested(dtype, folder):
    checks = checked_run(dtype, folder)
    assert checks.unreached() == []
    assert len(checks.sites) > 100


# ---- the checker itself -----------------------------------------------------

# A claim of the book, and a false one in its place.
PLANTED = {
    "two axes swapped": ("attention", "y = attend(q, k_cache, v_cache, start)  # (B, T, H, D)", "(B, H, T, D)"),
    "an axis too many": ("norm", "axis=-1, keepdims=True) / E  # (*B, 1)", "(*B, 1, 1)"),
    "an axis too few": ("model", "x = model.embed[tokens]  # (B, T, E)", "(T, E)"),
    "a number": ("attention", "peak = np.maximum(one.peak, other.peak)  # (B, K, G, T, 1)", "(B, K, G, T, 2)"),
    "an expression": ("rope", "index = np.arange(D // 2, dtype=dtype)  # (D // 2,)", "(D // 4,)"),
    "a letter that the code assigns": ("ops", "dtype=np.result_type(a, b))  # (M, C)", "(C, M)"),
    "several lines": ("model", "start, count, attend, write\n        )  # (B, T, E)", "(B, T, V)"),
    "an alternative": ("model", "x = rms_norm(x, model.norm, eps)  # (B, T_or_M, E)", "(B, B_or_1, E)"),
    "any number of axes": ("attention", "e = np.exp(scores - scores.max(axis=-1, keepdims=True))  # (*B, S)", "(*B, S, 1)"),
    "a field": ("weights", "wk: np.ndarray  # (K, D, E)", "(D, K, E)"),
    "an optional field": ("weights", "b_up: np.ndarray | None = None  # (F,)", "(E,)"),
    "a field's dtype": ("cache", "length: np.ndarray  # (B,) int64", "(B,) int32"),
    "a size": ("config", "intermediate_size: int  # F", "E"),
    "a parameter": ("attention", "k, v : (B, K, N, D) float", "(B, N, K, D) float"),
    "a parameter's dtype": ("cache", "start : (B,) int64", "(B,) int32"),
    "a tuple of arrays": ("attention", "tables : cos, sin of (B, T, D // 2) float", "cos, sin of (B, T, D) float"),
    "a result": ("feedforward", "Returns\n    -------\n    (B, T, E) float", "(B, T, F) float"),
    "several results": ("rope", "w : (D // 2,) float", "(D,) float"),
    "a scalar": ("attention", "first : int", "str"),
    "a Python number": ("norm", "eps : float", "int"),
    "a word": ("cache", 'dtype : "float32" or "float64"', '"float16"'),
    "a record": ("feedforward", "layer : Layer", "KVCache"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_false_claim_is_caught(kind):
    name, claim, false = PLANTED[kind]
    source = source_of(name)
    assert claim in source
    true = re.split("# | : |: |\n *", claim)[-1]
    assert claim.endswith(true)
    planted = source.replace(claim, claim[: -len(true)] + false, 1)
    assert planted != source
    with pytest.raises((ShapeError, AttributeError)):
        run_yarn(Checks(ARRAYS, "float32", {name: planted}).modules)


def run_yarn(chapters):
    """The smallest workload that comes by every planted claim."""
    run_ragged(
        chapters, own_config(chapters, replace(DISTINCT, rope=ROPES[3])), "float32"
    )


def test_array_of_another_float_type_is_caught():
    old = "mean_square = np.square(x).sum(axis=-1, keepdims=True) / E"
    source = source_of("norm").replace(old, old + " * np.ones(1)")
    checks = Checks(ARRAYS, "float32", {"norm": source})
    with pytest.raises(ShapeError, match="found float64"):
        run_yarn(checks.modules)


@pytest.mark.parametrize(
    "line",
    ["x[0] = 1  # (B, T)", "return x  # (B, T)", "print(x)  # (B, T)"],
)
def test_claim_that_cannot_be_checked_is_refused(line):
    source = f"def f(x):\n    {line}\n"
    with pytest.raises(ShapeError):
        Checks(("norm",), "float32", {"norm": source})


def test_docstring_that_cannot_be_read_is_refused():
    source = 'def f(x):\n    """F.\n\n    Parameters\n    ----------\n    x : [B, T] float32\n    """\n'
    with pytest.raises(ShapeError, match="cannot check x"):
        Checks(("norm",), "float32", {"norm": source})


def test_claim_that_was_not_reached_is_reported():
    source = "def f(x):\n    y = x  # (B,)\n    if len(x) > 1:\n        z = x  # (B,)\n    return y, z\n"
    checks = Checks(("norm",), "float32", {"norm": source})
    with pytest.raises(UnboundLocalError):
        checks.modules.norm.f(np.ones(1, dtype=np.float32))
    assert [site.name for site in checks.unreached()] == ["z"]


# ---- one float type ---------------------------------------------------------


class Seen(ast.NodeTransformer):
    """Shows the value of every expression that computes something to `__see__`."""

    def __init__(self, chapter):
        self.chapter = chapter

    def visit(self, node):
        node = self.generic_visit(node)
        computes = isinstance(node, (ast.Call, ast.BinOp, ast.UnaryOp, ast.Subscript))
        if not computes or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return node
        where = ast.Constant(self.chapter), ast.Constant(node.lineno)
        call = ast.Call(ast.Name("__see__", ast.Load()), [node, *where], [])
        return ast.copy_location(call, node)


def lines_that_compute(wrong, dtype, sources=None):
    """Lines of which some value is of type `wrong` when a model runs in `dtype`."""
    texts = {name: source_of(name) for name in ARRAYS} | (sources or {})
    found = set()

    def see(value, name, line):
        if isinstance(value, (np.ndarray, np.generic)) and value.dtype == wrong:
            found.add(f"{name}: {texts[name].splitlines()[line - 1].strip()}")
        return value

    def watched(name):
        return ast.fix_missing_locations(Seen(name).visit(ast.parse(texts[name])))

    run_every_rope(load(ARRAYS, watched, {"__see__": see}), dtype)
    return found


# The one place that asks for float64 by name: a power that is rounded at once.
ASKED_FOR = {
    "rope: wavelength = np.power(theta, exponent.astype(np.float64)).astype(dtype)"
    "  # (D // 2,)"
}


def test_no_float64_appears_anywhere_in_a_float32_forward():
    assert lines_that_compute("float64", "float32") == ASKED_FOR


def test_no_float32_appears_anywhere_in_a_float64_forward():
    assert lines_that_compute("float32", "float64") == set()


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("attention", "scores / math.sqrt(D))  # (S,)", "scores / np.sqrt(D))  # (S,)"),
        ("norm", "keepdims=True) / E", "keepdims=True) / np.float64(E)"),
        ("rope", "positions[:, :, None].astype(dtype)", "positions[:, :, None]"),
        ("feedforward", "    hidden *= up\n", "    hidden *= up * np.ones(1)\n"),
    ],
)
def test_float64_that_is_planted_is_found(name, old, new):
    source = source_of(name)
    assert source.count(old) == 1
    found = lines_that_compute("float64", "float32", {name: source.replace(old, new)})
    assert any(new.strip() in line for line in found - ASKED_FOR)
