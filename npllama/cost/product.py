"""The cost of one product, from its equation and its shapes.

*FLOPs*, floating-point operations: every entry of the result of an (m, n) by (n, p)
product is a sum of n products, n multiplications and n additions, so 2 m n p in all.
Written as an equation, that is twice the product of its letters, batch axes included.

*Elements moved* (MOPs): both operands read once, the result written once, so
m n + n p + m p.  A processor whose cache cannot hold an operand moves more; no
processor can move less, if the data starts and ends in memory.

*Arithmetic intensity*: FLOPs per element moved, or per byte.  It decides whether a
machine waits for its memory or for its arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from npllama.ops import Kind

# Looking up embeddings is not a product: for every token, its row of the table is read
# and written.  Its first operand are the tokens, its second the rows that are read.
LOOKUP = "VE[BT]->BTE"


class Total(NamedTuple):
    """What some products cost together."""

    calls: int
    flops: int
    read: int  # elements
    written: int  # elements
    kept: int  # of those read: weights, or cached keys and values
    bytes: dict[str, int]  # read and written, by dtype

    def __add__(self, other):
        names = sorted({*self.bytes, *other.bytes})
        size = {n: self.bytes.get(n, 0) + other.bytes.get(n, 0) for n in names}
        return Total(*(a + b for a, b in zip(self[:5], other[:5])), size)

    def __mul__(self, n):
        size = {name: n * bytes_ for name, bytes_ in self.bytes.items()}
        return Total(*(n * a for a in self[:5]), size)

    @property
    def mops(self) -> int:
        """Elements moved: read or written."""
        return self.read + self.written

    @property
    def intensity(self) -> float:
        """FLOPs per element moved."""
        return self.flops / max(self.mops, 1)

    @property
    def byte_intensity(self) -> float:
        """FLOPs per byte moved."""
        return self.flops / max(sum(self.bytes.values()), 1)


NOTHING = Total(0, 0, 0, 0, 0, {})


class Product(NamedTuple):
    """Equal products, and what they cost together."""

    phase: str  # "prefill", "decode", "mixed"; "outside" before any pass
    layer: int | None  # None outside the blocks
    name: str
    equation: str
    shapes: tuple[tuple[int, ...], ...]  # of operands, result; () if various
    total: Total


def shapes(kind: Kind) -> tuple[tuple[int, ...], ...]:
    """Shapes of both operands and of the result."""
    if kind.equation == LOOKUP:
        return kind.shape_a, kind.shape_b
    sizes, out = _sizes(kind), kind.equation.split("->")[1]
    return kind.shape_a, kind.shape_b, tuple(sizes[letter] for letter in out)


def _sizes(kind: Kind) -> dict[str, int]:
    letters = kind.equation.split("->")[0].replace(",", "")
    return dict(zip(letters, kind.shape_a + kind.shape_b))


def cost(kind: Kind) -> Total:
    """What one product costs.

    The second operand is stored by the model, weights or cached keys and values; the
    first is an activation.  A `Weight` that is not a plain array counts the bytes that
    it stores, under the name of its format; unpacking them is not a product.
    """
    if kind.equation == LOOKUP:
        flops, a = 0, 0
        b = y = math.prod(kind.shape_b)
    else:
        flops = 2 * math.prod(_sizes(kind).values())
        a, b, y = map(math.prod, shapes(kind))
    format, kept = kind.kept or (kind.dtype.name, b * kind.dtype.itemsize)
    size = {kind.dtype.name: (a + y) * kind.dtype.itemsize}
    size[format] = size.get(format, 0) + kept
    return Total(1, flops, a + b, y, b, size)


def merged(products: Iterable[Product]) -> list[Product]:
    """Equal products as one."""
    found: dict[tuple, Product] = {}
    for p in products:
        same = found.get(p[:5])
        found[p[:5]] = p._replace(total=same.total + p.total) if same else p
    return list(found.values())


def grouped(products: Iterable[Product], *fields: str) -> dict[Any, Total]:
    """Sums of products that are alike in some fields of `Product`.

    Returns
    -------
    dict
        With one field its values are the keys, with several tuples of them.

    Raises
    ------
    ValueError
        If there is no such field.
    """
    labels = Product._fields[:5]  # all but the total
    for field in fields:
        if field not in labels:
            raise ValueError(f"no field {field!r}; there are {', '.join(labels)}")
    sums: dict[Any, Total] = {}
    for product in products:
        values = tuple(getattr(product, field) for field in fields)
        key = values[0] if len(values) == 1 else values
        sums[key] = sums.get(key, NOTHING) + product.total
    return sums
