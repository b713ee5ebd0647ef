"""Cases for kernels: right ones pass in every dtype, and each mistake is caught."""

import math
from functools import partial

import numpy as np
import pytest

from npllama.golden.cases import KINDS
from npllama.golden.ops import DTYPES, OPS, Mismatch, cases, check
from npllama.golden.precision import rounded, truncated

# ---- kernels as people write them: float32 inside, the result in the dtype -------


def wide(x):
    return np.asarray(x).astype(np.float32)


def rms_norm(x, gain, eps, *, inside=True, centred=False, power=2):
    y = wide(x)
    if centred:
        y = y - y.mean(axis=-1, keepdims=True)
    mean = (y**power).mean(axis=-1, keepdims=True)
    root = np.sqrt(mean + np.float32(eps)) if inside else np.sqrt(mean) + eps
    return (y / root * wide(gain)).astype(x.dtype)


def angles_of(positions, theta, D, table=wide):
    speed = wide(theta ** (-np.arange(0, D, 2) / D))
    return table(table(positions)[..., None] * table(speed))[:, :, None]


def rope(x, positions, theta, *, neighbours=False, table=wide, sign=1):
    y, D = wide(x), x.shape[-1]
    angle = sign * angles_of(positions, theta, D, table)
    cos, sin = np.cos(angle), np.sin(angle)
    if neighbours:
        a, b = y[..., 0::2], y[..., 1::2]
        pair = np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        return pair.reshape(x.shape).astype(x.dtype)
    a, b = y[..., : D // 2], y[..., D // 2 :]
    pair = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return pair.astype(x.dtype)


def softmax(scores, *, shift=True):
    s = wide(scores)
    with np.errstate(over="ignore", invalid="ignore"):
        e = np.exp(s - s.max(axis=-1, keepdims=True) if shift else s)
        return (e / e.sum(axis=-1, keepdims=True)).astype(scores.dtype)


def attention(
    q, k, v, start, *, tile=False, scale=None, reach=0, late=0, stored=None, **how
):
    B, T, H, D = q.shape
    G = H // k.shape[1]
    spread = (lambda x: np.tile(x, (1, G, 1, 1))) if tile else partial(
        np.repeat, repeats=G, axis=1
    )  # fmt: skip
    keys, values = spread(wide(k)), spread(wide(v))
    scores = np.einsum("bthd,bhnd->bhtn", wide(q), keys)
    scores *= 1 / math.sqrt(D) if scale is None else scale
    first = start + late if stored is None else np.full(B, stored(start))
    last = first[:, None] + np.arange(T) + reach
    hidden = np.arange(k.shape[2]) > last[:, None, :, None]
    scores[np.broadcast_to(hidden, scores.shape)] = -np.inf
    y = np.einsum("bhtn,bhnd->bthd", softmax(scores, **how), values)
    return y.astype(q.dtype)


def silu_and_mul(gate, up, *, swapped=False, bend="silu"):
    gate, up = (up, gate) if swapped else (gate, up)
    g = wide(gate)
    with np.errstate(over="ignore", invalid="ignore"):
        bent = {
            "silu": lambda: g / (1 + np.exp(-g)),
            "gelu": lambda: g / (1 + np.exp(-1.702 * g)),
            "other way": lambda: g * np.exp(g) / (1 + np.exp(g)),
        }[bend]()
        return (bent * wide(up)).astype(gate.dtype)


def swiglu(x, w_gate, w_up, w_down, *, linear=False, **how):
    gate, up = (wide(x) @ wide(w).T for w in (w_gate, w_up))
    hidden = gate * up if linear else silu_and_mul(gate, up, **how)
    return (hidden @ wide(w_down).T).astype(x.dtype)


def draw(probs, u, *, side="right", reverse=False):
    p = wide(probs)[:, ::-1] if reverse else wide(probs)
    ends = np.cumsum(p, axis=-1, dtype=np.float32)
    hits = [np.searchsorted(e, x * e[-1], side) for e, x in zip(ends, u)]
    tokens = np.minimum(hits, p.shape[1] - 1)
    return p.shape[1] - 1 - tokens if reverse else tokens


RIGHT = {
    "rms_norm": rms_norm,
    "rope": rope,
    "rope_interleaved": partial(rope, neighbours=True),
    "attention": attention,
    "swiglu": swiglu,
    "silu_and_mul": silu_and_mul,
    "softmax": softmax,
    "draw": draw,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_right_kernel_passes_on_any_numbers(op, dtype):
    for seed in range(3):
        for case in cases(op, dtype, seed):
            check(RIGHT[op](**case.inputs), case)


# ---- and as they get them wrong --------------------------------------------------


def widened(x):
    """In float32, but for positions and plain numbers."""
    return wide(x) if np.ndim(x) and x.dtype.kind != "i" else x


def cut(kernel, **inputs):
    """Digits beyond bfloat16 are cut off the result, not rounded."""
    return truncated(kernel(**{n: widened(x) for n, x in inputs.items()}), "bfloat16")


def rounded_squares(x, gain, eps):
    """The mean square added up in half precision."""
    total = np.zeros((*x.shape[:-1], 1), np.float32)
    for column in np.moveaxis(wide(x), -1, 0):
        total = rounded(total + rounded(column[..., None] ** 2, "bfloat16"), "bfloat16")
    mean = total / x.shape[-1]
    return (wide(x) / np.sqrt(mean + np.float32(eps)) * wide(gain)).astype(x.dtype)


def half(x):
    return rounded(x, "bfloat16")


FAULTS = {
    "eps outside the root": ("rms_norm", partial(rms_norm, inside=False)),
    "no eps": ("rms_norm", lambda x, gain, eps: rms_norm(x, gain, 0)),
    "another eps": ("rms_norm", lambda x, gain, eps: rms_norm(x, gain, 1e-5)),
    "no gain": ("rms_norm", lambda x, gain, eps: rms_norm(x, gain * 0 + 1, eps)),
    "gain plus one": ("rms_norm", lambda x, gain, eps: rms_norm(x, gain + 1, eps)),
    "mean subtracted": ("rms_norm", partial(rms_norm, centred=True)),
    "norm over everything": (
        "rms_norm",
        lambda x, gain, eps: rms_norm(
            x.reshape(1, -1), np.tile(gain, len(x)), eps
        ).reshape(x.shape),
    ),
    "neighbours for halves": ("rope", partial(rope, neighbours=True)),
    "halves for neighbours": ("rope_interleaved", rope),
    "turned backwards": ("rope", partial(rope, sign=-1)),
    "another theta": ("rope", lambda x, positions, theta: rope(x, positions, 1e4)),
    "positions in half precision": ("rope", partial(rope, table=half)),
    "position off by one": (
        "rope",
        lambda x, positions, theta: rope(x, positions + 1, theta),
    ),
    "positions from zero": (
        "rope",
        lambda x, positions, theta: rope(x, positions - positions[:, :1], theta),
    ),
    "positions of the first row": (
        "rope",
        lambda x, positions, theta: rope(
            x, np.broadcast_to(positions[:1], positions.shape), theta
        ),
    ),
    "tile for repeat": ("attention", partial(attention, tile=True)),
    "no scale": ("attention", partial(attention, scale=1.0)),
    "scaled by D": (
        "attention",
        lambda q, **more: attention(q, **more, scale=1 / q.shape[-1]),
    ),
    "sees one too many": ("attention", partial(attention, reach=1)),
    "sees one too few": ("attention", partial(attention, late=-1)),
    "no mask": ("attention", partial(attention, reach=10**6)),
    "start ignored": ("attention", partial(attention, stored=lambda start: 0)),
    "lengths ignored": ("attention", partial(attention, stored=np.max)),
    "shortest for all": ("attention", partial(attention, stored=np.min)),
    "maximum not subtracted": ("softmax", partial(softmax, shift=False)),
    "maximum not subtracted inside": ("attention", partial(attention, shift=False)),
    "base two": ("softmax", lambda scores: softmax(scores * scores.dtype.type(0.6875))),
    "softmax over columns": ("softmax", lambda scores: softmax(scores.T).T),
    "gate and up swapped": ("swiglu", partial(swiglu, swapped=True)),
    "halves swapped": ("silu_and_mul", partial(silu_and_mul, swapped=True)),
    "no bend": ("swiglu", partial(swiglu, linear=True)),
    "another bend": ("silu_and_mul", partial(silu_and_mul, bend="gelu")),
    "exp of the gate": ("silu_and_mul", partial(silu_and_mul, bend="other way")),
    "edge to the left": ("draw", partial(draw, side="left")),
    "from the other end": ("draw", partial(draw, reverse=True)),
    "greedy": ("draw", lambda probs, u: wide(probs).argmax(axis=-1)),
    "one u for all": ("draw", lambda probs, u: draw(probs, u * 0 + u[0])),
}


def caught(op, kernel, dtype):
    """Names of the cases that refuse a kernel."""
    found = []
    for case in cases(op, dtype):
        try:
            check(kernel(**case.inputs), case)
        except Mismatch as error:
            assert "\n" not in str(error) and case.name in str(error)
            found.append(case.name)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_mistake_is_caught(fault, dtype):
    op, kernel = FAULTS[fault]
    with np.errstate(all="ignore"):
        assert caught(op, kernel, dtype)


@pytest.mark.parametrize("op", [op for op in OPS if op != "draw"])
def test_digits_cut_off_instead_of_rounded_are_caught(op):
    assert caught(op, partial(cut, RIGHT[op]), "bfloat16")


def test_sums_in_half_precision_are_caught():
    assert "wide" in caught("rms_norm", rounded_squares, "bfloat16")


# ---- what a case is ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_numbers_of_the_dtype(dtype):
    for op in OPS:
        for case in cases(op, dtype):
            for name, x in case.inputs.items():
                if name not in ("eps", "theta", "positions", "start", "u"):
                    assert x.dtype.name == dtype
                    kept = rounded(x.astype(np.float32), dtype)
                    np.testing.assert_array_equal(kept, x.astype(np.float32))


def test_without_ml_dtypes_bfloat16_is_a_float32_that_it_can_hold(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    for case in cases("softmax", "bfloat16"):
        scores = case.inputs["scores"]
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(rounded(scores, "bfloat16"), scores)
        check(softmax(scores), case)


def test_edges_of_the_draw_are_exact_in_every_dtype():
    """Else the token at an edge would be a matter of rounding, not of convention."""
    for dtype in DTYPES:
        for case in cases("draw", dtype):
            total = case.inputs["probs"].astype(np.float64).sum(axis=-1)
            if case.name in ("edges", "fine edges"):
                np.testing.assert_array_equal(total, 1)


def test_cases_differ_by_seed_and_repeat_themselves():
    for op in OPS:
        once, again, other = cases(op), cases(op), cases(op, seed=1)
        assert [case.name for case in once] == list(KINDS[op])
        for a, b in zip(once, again):
            np.testing.assert_array_equal(a.expected, b.expected)
        assert any((a.expected != b.expected).any() for a, b in zip(once, other))


def test_in_place_kernel_is_judged_by_the_original_inputs():
    for case in cases("softmax"):
        s = case.inputs["scores"]
        s -= s.max(axis=-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(axis=-1, keepdims=True)
        check(s, case)


def test_anything_like_an_array_is_taken():
    case = cases("softmax")[0]
    check(case.expected.tolist(), case)
    check(memoryview(case.expected), case)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda y: y.T, r"shape \(37, 5\), where \(5, 37\) is right"),
        (lambda y: y[:, :-1], "shape"),
        (lambda y: np.where(np.arange(37) == 3, np.nan, y), r"nan at \(0, 3\), where"),
        (lambda y: y + 0.5 * (np.arange(37) == 3), r"0\.5\S* at \(\d, 3\), where \d"),
    ],
)
def test_refusal_names_the_case_and_the_worst_element(spoil, message):
    case = next(c for c in cases("softmax") if c.name == "odd length")
    with pytest.raises(
        AssertionError, match=f"softmax in float32, odd length: {message}"
    ):
        check(spoil(case.expected), case)


def test_error_beyond_two_floors_is_refused_and_one_within_is_not():
    for dtype in DTYPES:
        for case in cases("attention", dtype):
            at = tuple(n - 1 for n in case.expected.shape)
            for factor in (1.9, 2.1):
                got = case.expected.copy()
                got[at] += factor * case.floor[at]
                if factor < 2:
                    check(got, case)
                else:
                    with pytest.raises(Mismatch, match="2.1 noise floors off"):
                        check(got, case)


@pytest.mark.parametrize(
    "arguments, known",
    [(("atention",), "rms_norm, rope"), (("softmax", "float64"), "float32, bfloat16")],
)
def test_unknown_name_is_answered_with_the_known_ones(arguments, known):
    with pytest.raises(ValueError, match=known):
        cases(*arguments)
