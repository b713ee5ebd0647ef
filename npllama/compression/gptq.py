r"""GPTQ: rounding one column, and letting the others make up for it.

Rounding to the nearest moves every weight as little as possible.  But what matters is
the output W x on the inputs x that occur, and a change of one weight can be made up for
by changes of others, since inputs are correlated.  For a weight matrix W (C, S) and n
inputs X (S, n), GPTQ looks for codes whose values Q make

$$\|W X - Q X\|^2 = \tfrac12 \mathrm{tr}\,(W - Q)\, H\, (W - Q)^T, \qquad H = 2 X X^T$$

small.  H is the second derivative with respect to a row of W, the same for all rows.

*One step, from OBS.*  Fix column j of a row at q_j, and let the other entries change by
$\delta$ so that the objective $\tfrac12 \delta H \delta^T$ is least.  With a Lagrange
multiplier for $\delta_j = q_j - w_j$,

$$\delta = -\,e\,[H^{-1}]_{j,:}, \qquad e = \frac{w_j - q_j}{[H^{-1}]_{jj}}$$

and the objective is $\tfrac12 (w_j - q_j)^2 / [H^{-1}]_{jj}$.  This is the Optimal
Brain Surgeon (Hassibi and Stork 1993).  Then j is done, and the same step follows for
the columns F that are left, with the inverse of H restricted to F.  OBS would choose
for every row which column comes next.  GPTQ takes the same order for all rows, so
that all share the inverses.

*No inverse per step.*  Let $H^{-1} = U^T U$ with U upper triangular.  Without its first
j rows and columns, U is the factor of the inverse restricted to F: removing a
variable from H is Gaussian elimination on $H^{-1}$, and that is how a Cholesky factor
is computed.  So row j of U is the needed row of that inverse, divided by the square
root of its first entry.  The step becomes

$$e = \frac{w_j - q_j}{U_{jj}}, \qquad w_{j:} \mathrel{-}= e\, U_{j,j:}$$

and costs one factorisation for all.  The objective grows by e^2 / 2.

*Blocks.*  A column needs only what the columns before it did to it.  So updates stay
inside a block of 128 columns, and what the block does to all later columns is one
product at its end.

Three options, which trade a little order for a little accuracy:

- *act-order*: columns with the largest diagonal of H first, while many others are
  left to make up for them.
- groups: the grid of a group is found when its first column comes, from the weights as
  they then are.  As published, it sees the updates of finished blocks but not those
  inside the current one; so it is stale if groups are smaller than a block.  Equality
  with other implementations needs the stale grids.
- *static groups*: all grids are found before, and a column keeps the group of its
  place, whatever the order.

*Damping* adds a hundredth of the mean of H's diagonal to it: with fewer inputs than
columns H has no inverse.  A column whose input was always 0 is *dead*: its weights
become 0, as published, so calibration must excite every input.

That GPTQ errs less than rounding to the nearest is no theorem: a single row may err
more.  Summed over rows, on correlated inputs, it does not.

References
----------
Frantar et al. 2022, arXiv:2210.17323, algorithm 1, and ``gptq.py`` of
IST-DASLab/gptq; auto-gptq and gptqmodel, whose codes and scales the tests compare.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npllama.compression.grid import (
    Grid,
    codebook_grid,
    find_grid,
    from_codes,
    group_size,
    nf4_points,
    to_codes,
)
from npllama.ops import multiply

BLOCK = 128  # columns
MOST_DAMPING = 1.0


class Recipe(NamedTuple):
    """How a matrix is rounded; the last three are for GPTQ alone."""

    bits: int = 4
    kind: str = "asymmetric"  # as `find_grid` has it, or "nf4"
    group: int | str = "channel"
    exponent: float | None = None  # of the error that clipping makes least
    act_order: bool = False
    static_groups: bool = False
    damping: float = 0.01


class Quantised(NamedTuple):
    """A matrix as codes, and the group of every input."""

    codes: np.ndarray  # (C, S) uint8
    grid: Grid
    groups: np.ndarray  # (S,) int64, called g_idx on disk
    error: float  # of the objective, with the damped H; NaN if there was none
    damping: float = 0.0  # as it was used


def grid_of(w: np.ndarray, recipe: Recipe, group: int | str) -> Grid:
    """The grid of a matrix by a recipe, in groups of the given size."""
    if recipe.kind == "nf4":
        if recipe.bits != 4:
            raise ValueError(f"nf4 has 4 bits, not {recipe.bits}")
        return codebook_grid(w, nf4_points(), group, recipe.exponent)
    return find_grid(w, recipe.bits, recipe.kind, group, recipe.exponent)


def rtn(w: np.ndarray, recipe: Recipe) -> Quantised:
    """Round every weight to the nearest value of its group.

    Parameters
    ----------
    w : (C, S) float
    recipe : Recipe
    """
    grid = grid_of(w, recipe, recipe.group)
    groups = np.arange(w.shape[1]) // grid.group
    return Quantised(to_codes(w, grid), grid, groups, np.nan)


def values_of(found: Quantised) -> np.ndarray:
    """The weights that codes stand for: (C, S), in the dtype of the scales."""
    grid = found.grid
    scale, zero = grid.scale[:, found.groups], grid.zero[:, found.groups]
    return from_codes(found.codes, grid._replace(group=1, scale=scale, zero=zero))


def objective(w: np.ndarray, values: np.ndarray, hessian: np.ndarray) -> float:
    """Half the trace of (W - Q) H (W - Q)^T: the squared error of the outputs.

    Parameters
    ----------
    w, values : (C, S) float
    hessian : (S, S) float64
    """
    off = (w - values).astype(np.float64)
    return float((multiply(off, hessian) * off).sum() / 2)


#  ---- the factor --------------------------------------------------------------


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """H with a part of the mean of its diagonal added to the diagonal."""
    extra = damping * np.diag(hessian).mean()
    return hessian + extra * np.eye(len(hessian), dtype=np.float64)


def inverse_factor(hessian: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """The upper triangular U with U^T U = inverse of the damped H.

    If that has no factor in float64, the damping is raised tenfold, and again.

    Parameters
    ----------
    hessian : (S, S) float64
        Symmetric; no zero on its diagonal.
    damping : float

    Returns
    -------
    factor : (S, S) float64
    damping : float
        What it took.

    Raises
    ------
    ValueError
        If H is not finite, or no damping helps.
    """
    if not np.isfinite(hessian).all():
        raise ValueError("an input of the calibration is not a finite number")
    while True:
        try:
            inverse = np.linalg.inv(damped(hessian, damping))
            lower = np.linalg.cholesky((inverse + inverse.T) / 2)
            return np.ascontiguousarray(lower.T), damping
        except np.linalg.LinAlgError:
            if damping >= MOST_DAMPING:
                raise ValueError(
                    "the inputs' H has no inverse at any damping"
                ) from None
            damping = min(max(10 * damping, 1e-3), MOST_DAMPING)


#  ---- column by column --------------------------------------------------------


class Grids:
    """The grid of every column, found before or on the way."""

    def __init__(self, w: np.ndarray, recipe: Recipe, dead: np.ndarray):
        S = w.shape[1]
        self.recipe, self.size = recipe, group_size(S, recipe.group)
        self.found: list[Grid] = []
        self.static = self.size == S or recipe.static_groups
        # As published, the grid of a whole row still sees the dead columns.
        alive = w if self.size == S else np.where(dead, 0, w)
        for j in range(0, S if self.static else 0, self.size):
            self._find(alive[:, j : j + self.size])

    def _find(self, w: np.ndarray) -> None:
        self.found.append(grid_of(w, self.recipe, "channel"))

    def at(self, j: int, place: int, w: np.ndarray) -> tuple[int, Grid]:
        """Group and grid of the column that comes j-th and stands at `place`."""
        if self.static:
            return place // self.size, self.found[place // self.size]
        if j % self.size == 0:
            self._find(w[:, j : j + self.size])
        return j // self.size, self.found[-1]

    def together(self) -> Grid:
        """One grid with the scales of all groups."""
        scale, zero = (
            np.concatenate([getattr(grid, name) for grid in self.found], axis=1)
            for name in ("scale", "zero")
        )
        return self.found[0]._replace(group=self.size, scale=scale, zero=zero)


def gptq(
    w: np.ndarray, hessian: np.ndarray, recipe: Recipe, block: int = BLOCK
) -> Quantised:
    """Round a matrix column by column, and correct the columns that are left.

    Parameters
    ----------
    w : (C, S) float
    hessian : (S, S) float64
        Sum of x x^T over the inputs; a factor before it changes nothing.
    recipe : Recipe
        Its group is a number of inputs or ``"channel"``.
    block : int
        Columns whose updates to later ones are made together.

    Returns
    -------
    Quantised

    Raises
    ------
    ValueError
        If H has no inverse at any damping, an argument does not fit, or a weight is
        not finite.
    """
    C, S = w.shape
    if hessian.shape != (S, S):
        raise ValueError(f"H is {hessian.shape} for weights of {S} inputs")
    if recipe.group == "tensor":
        raise ValueError("gptq finds a grid for every row; 'tensor' has one for all")
    w, hessian = w.astype(np.float64), hessian.astype(np.float64)  # copies
    dead = np.diag(hessian) == 0  # (S,)
    grids = Grids(w, recipe, dead)
    hessian[dead, dead] = 1
    w[:, dead] = 0
    order = np.arange(S)
    if recipe.act_order:
        order = np.argsort(-np.diag(hessian), kind="stable")
    w, hessian = w[:, order], hessian[np.ix_(order, order)]
    U, damping = inverse_factor(hessian, recipe.damping)

    codes = np.empty((C, S), dtype=np.uint8)  # in the order of rounding, as w
    groups, error = np.empty(S, dtype=np.int64), 0.0
    for first in range(0, S, block):
        last = min(first + block, S)
        rest = w[:, first:last].copy()  # (C, block)
        errors = np.empty_like(rest)  # (C, block)
        for j in range(first, last):
            groups[j], grid = grids.at(j, int(order[j]), w)
            column = rest[:, j - first, None]  # (C, 1)
            codes[:, j, None] = to_codes(column, grid)
            value = from_codes(codes[:, j, None], grid)
            errors[:, j - first, None] = e = (column - value) / U[j, j]
            rest[:, j - first :] -= e * U[j, j:last]
        w[:, last:] -= multiply(errors, U[first:last, last:])
        error += float((errors**2).sum()) / 2

    back = np.argsort(order)
    return Quantised(codes[:, back], grids.together(), groups[back], error, damping)
