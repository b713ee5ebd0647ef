r"""Rounding: every weight becomes one of a few values.

With b bits there are 2^b *codes*.  A group of weights shares a *scale* s > 0 and a
*zero point* z, a whole number, and the code q stands for the value

$$\hat{w} = s \, (q - z), \qquad q = \mathrm{clip}(\mathrm{round}(w / s) + z)$$

so the values are a *grid*: evenly spaced, with 0 among them.  Four weights of one
group, in 2 bits (s = 0.4, z = 1):

    w        -0.3   0.1   0.5   0.9
    w / s    -0.75  0.25  1.25  2.25
    code     0      1     2     3
    value    -0.4   0.0   0.4   0.8

A value inside the grid moves by s / 2 at most.  The scale follows the largest weight
of its group, so small groups err less.  But every group must store its scale: in
float16, 16 / g bits more per weight for groups of g.

Three rules for the ends of a grid are in use, and their numbers differ:

- *asymmetric*: from the smallest weight to the largest, widened to contain 0.  (AWQ
  does not widen it, and so clips a group whose weights are all far from 0.)
- *symmetric*, as GPTQ has it: from -m to m, m the largest magnitude, in 2^b - 1 steps,
  with z = 2^(b-1).  No code is left for +m: of 4 bits, the values are -8 s ... 7 s with
  s = 2 m / 15, so +m is clipped to 0.93 m, and -m becomes -1.07 m.  Stranger still, a
  group without a negative weight gets s = m / 15, and is clipped at 0.47 m.
- *restricted*: s = m / (2^(b-1) - 1), and the lowest code is left out, so the values
  are -7 s ... 7 s.  Most others call this one symmetric.

The largest weight may be an outlier that nobody misses.  *Clipping* shrinks the ends
of the grid and takes the grid with the least error, the sum of |w - value|^p over the
group: GPTQ has p = 2.4, ANT p = 2.  Error in 4 bits relative to the weights' mean
square, asymmetric, one grid for 65,536 weights:

    weights    ends kept   clipped, p = 2
    uniform    0.004       0.004
    normal     0.028       0.012
    Laplace    0.10        0.03

Values need not be evenly spaced: a *codebook* gives each code a *point*, and the value
is s times that.  *NF4*, of QLoRA, has quantiles of the normal distribution as its
points, which lie dense where normal weights do.  On the normal weights above, in groups
of 64, its error is 0.0085, where the restricted grid, of the same bytes, has 0.0117.

References
----------
The file ``quant.py`` of IST-DASLab/gptq; Frantar et al. 2022, arXiv:2210.17323; Guo et
al. 2022, "ANT", arXiv:2208.14286; Dettmers et al. 2023, "QLoRA", arXiv:2305.14314,
section 3, and ``create_normal_map`` of bitsandbytes.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

KINDS = ("asymmetric", "symmetric", "restricted")
# The exponents by which clipping measures its error.
GPTQ_EXPONENT, ANT_EXPONENT = 2.4, 2.0
# Clipping tries to shrink a grid by 0, 1, ... 79 hundredths.
SHRINKS = 80


class Grid(NamedTuple):
    """The values that weights may take, for each group of inputs."""

    bits: int
    group: int  # inputs that share a scale; the last group may have fewer
    scale: np.ndarray  # (C, groups) float; (1, 1) for a whole tensor
    zero: np.ndarray  # (C, groups) float, whole numbers; zeros for a codebook
    lowest: int = 0  # the least code in use
    points: np.ndarray | None = None  # (2**bits,) float, of a codebook

    def take(self, first: int, last: int) -> Grid:
        """The grid of some rows."""
        rows = slice(None) if len(self.scale) == 1 else slice(first, last)
        return self._replace(scale=self.scale[rows], zero=self.zero[rows])


#  ---- groups ------------------------------------------------------------------


def group_size(S: int, group: int | str) -> int:
    """Inputs of a group, given as a number or as ``"channel"``: all of a row.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if group == "channel":
        return max(S, 1)
    if not isinstance(group, int) or isinstance(group, bool) or group < 1:
        raise ValueError(
            f"group {group!r}: a number of inputs from 1 on, 'channel' or 'tensor'"
        )
    return min(group, max(S, 1))


def spread(numbers: np.ndarray, S: int, group: int) -> np.ndarray:
    """Give every input the number of its group.

    Parameters
    ----------
    numbers : (C, groups)
    S, group : int

    Returns
    -------
    (C, S)
    """
    return numbers[:, np.arange(S) // group]


def over_groups(reduce: np.ufunc, w: np.ndarray, group: int) -> np.ndarray:
    """Reduce the inputs of every group, by ``np.add``, ``np.maximum`` ...

    Parameters
    ----------
    w : (C, S)
    group : int

    Returns
    -------
    (C, groups)
    """
    return reduce.reduceat(w, np.arange(0, w.shape[1], group), axis=1)


#  ---- codes and values --------------------------------------------------------


def to_codes(w: np.ndarray, grid: Grid) -> np.ndarray:
    """Round every weight to the nearest value; in the middle, to the even code.

    Parameters
    ----------
    w : (C, S) float
    grid : Grid

    Returns
    -------
    (C, S) uint8
    """
    S = w.shape[1]
    ratio = w / spread(grid.scale, S, grid.group)  # (C, S)
    if grid.points is not None:
        return nearest(ratio, grid.points)
    q = np.round(ratio) + spread(grid.zero, S, grid.group)
    return np.clip(q, grid.lowest, 2**grid.bits - 1).astype(np.uint8)


def from_codes(codes: np.ndarray, grid: Grid) -> np.ndarray:
    """The values that codes stand for, in the dtype of the scales.

    Parameters
    ----------
    codes : (C, S) uint8
    grid : Grid

    Returns
    -------
    (C, S) float
    """
    S, dtype = codes.shape[1], grid.scale.dtype
    points = codes if grid.points is None else grid.points[codes]
    steps = points.astype(dtype) - spread(grid.zero, S, grid.group)
    return steps * spread(grid.scale, S, grid.group)


def nearest(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The code whose point is nearest; in the middle of two, the lower point's.

    Parameters
    ----------
    x : array of float
    points : (n,) float
        In any order; of equal points the first is taken.

    Returns
    -------
    array of uint8
    """
    order = np.argsort(points, kind="stable")
    order = order[np.unique(points[order], return_index=True)[1]]
    rising = points[order].astype(np.float64)
    middle = (rising[1:] + rising[:-1]) / 2
    return order.astype(np.uint8)[np.searchsorted(middle, x)]


#  ---- finding a grid ----------------------------------------------------------


def find_grid(
    w: np.ndarray,
    bits: int,
    kind: str = "asymmetric",
    group: int | str = "channel",
    exponent: float | None = None,
) -> Grid:
    """Choose scales and zero points for weights.

    Parameters
    ----------
    w : (C, S) float
    bits : int
        1 to 8.
    kind : "asymmetric", "symmetric" or "restricted"
    group : int, "channel" or "tensor"
        What shares a scale: so many inputs of a row, a row, or all.
    exponent : float, optional
        Clip, with the error measured by this power (`GPTQ_EXPONENT`, `ANT_EXPONENT`).

    Returns
    -------
    Grid
        Scales and zero points in the dtype of the weights.

    Raises
    ------
    ValueError
        If an argument is out of range, or a weight is not finite.
    """
    if not 1 <= bits <= 8 or (kind == "restricted" and bits == 1):
        raise ValueError(f"{bits} bits, {kind}: from 1 to 8; from 2 on if restricted")
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if group == "tensor":
        w, group = w.reshape(1, -1), "channel"
    size = group_size(w.shape[1], group)
    low, high = ends(w, kind, size, 2**bits - 1)
    grid = _between(low, high, bits, kind, size)
    return grid if exponent is None else clipped(w, grid, exponent)


def ends(
    w: np.ndarray, kind: str, group: int, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of every group's grid, (C, groups) each."""
    none = w.dtype.type(0)
    low = np.minimum(over_groups(np.minimum, w, group), none)
    high = np.maximum(over_groups(np.maximum, w, group), none)
    if kind != "asymmetric":
        high = np.maximum(-low, high)
        # As published, a group without a negative weight keeps its lower end, 0.
        one_sided = (low == 0) & (kind == "symmetric")
        low = np.where(one_sided, low, -high)
    # Zeros alone (or numbers too small for a scale) get the grid of -1 ... 1.
    flat = (high - low) / levels == 0
    one = w.dtype.type(1)
    return np.where(flat, -one, low), np.where(flat, one, high)


def _between(
    low: np.ndarray, high: np.ndarray, bits: int, kind: str, group: int
) -> Grid:
    """The grid between two ends."""
    if kind == "restricted":
        scale = high / (2 ** (bits - 1) - 1)
    else:
        scale = (high - low) / (2**bits - 1)
    if not np.isfinite(scale).all():
        raise ValueError("a weight is not a finite number, or too large for a scale")
    if kind == "asymmetric":
        zero = np.round(-low / scale)
    else:
        zero = np.full_like(scale, 2 ** (bits - 1))
    return Grid(bits, group, scale, zero, lowest=int(kind == "restricted"))


def clipped(w: np.ndarray, grid: Grid, exponent: float) -> Grid:
    """Shrink the scale of every group as long as its error falls.

    Parameters
    ----------
    w : (C, S) float
    grid : Grid
        From the ends of the weights.
    exponent : float

    Returns
    -------
    Grid
        Of each group the least error among `SHRINKS` scales; of equal errors the
        larger scale.
    """
    w = w.reshape(1, -1) if len(grid.scale) == 1 else w
    best, least = grid.scale, np.full(grid.scale.shape, np.inf)
    for i in range(SHRINKS):
        tried = grid._replace(scale=grid.scale * (1 - i / 100))
        off = np.abs(from_codes(to_codes(w, tried), tried) - w) ** exponent
        error = over_groups(np.add, off, grid.group)  # (C, groups)
        best = np.where(error < least, tried.scale, best)
        least = np.minimum(error, least)
    return grid._replace(scale=best)


#  ---- codebooks ---------------------------------------------------------------


def codebook_grid(
    w: np.ndarray,
    points: np.ndarray,
    group: int | str = 64,
    exponent: float | None = None,
) -> Grid:
    """The grid of a codebook, whose largest point stands for the largest magnitude.

    Parameters
    ----------
    w : (C, S) float
    points : (2**bits,) float
        What the codes stand for, before the scale; such as `nf4_points`.
    group, exponent
        As for `find_grid`.

    Raises
    ------
    ValueError
        If the points are not a power of 2, or a weight is not finite.
    """
    bits = len(points).bit_length() - 1
    if len(points) != 2**bits or not 1 <= bits <= 8:
        raise ValueError(f"{len(points)} points; a codebook has 2, 4, 8 ... or 256")
    if group == "tensor":
        w, group = w.reshape(1, -1), "channel"
    size = group_size(w.shape[1], group)
    most = over_groups(np.maximum, np.abs(w), size)  # (C, groups)
    scale = (most / np.abs(points).max()).astype(w.dtype)
    scale = np.where(scale == 0, w.dtype.type(1), scale)
    if not np.isfinite(scale).all():
        raise ValueError("a weight is not a finite number")
    points = points.astype(w.dtype)
    grid = Grid(bits, size, scale, np.zeros_like(scale), points=points)
    return grid if exponent is None else clipped(w, grid, exponent)


@lru_cache(maxsize=1)
def nf4_points() -> np.ndarray:
    """The 16 points of NF4: normal quantiles, brought to -1 ... 1, with 0 among them.

    Between the outermost quantile and the median stand 8 points above 0 and 7 below,
    at equal steps of probability.  Steps are rounded as bitsandbytes rounds them, so
    that the points are its points to the last bit.

    Returns
    -------
    (16,) float32
        Rising.
    """
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in _even_steps(8)]
    below = [-quantile(p) for p in _even_steps(7)]
    points = np.array(sorted([*below, 0.0, *above]), dtype=np.float32)
    points /= points.max()
    points.flags.writeable = False  # all callers share it
    return points


def _even_steps(n: int) -> list[float]:
    """n probabilities from the outermost one towards 0.5, which is left out.

    Rounded as by ``torch.linspace``: half of them are counted from either end.
    """
    outermost, median = np.float32(0.9677083), np.float32(0.5)  # 1 - (1/32 + 1/30) / 2
    step = (median - outermost) / np.float32(n)
    fall = [step * np.float32(i) for i in range(n + 1)]
    half = (n + 1) // 2
    steps = [outermost + fall[i] for i in range(half)]
    return [float(p) for p in steps + [median - fall[n - i] for i in range(half, n)]]
