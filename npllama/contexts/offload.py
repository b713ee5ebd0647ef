r"""What does not fit: which layers stay in memory, and how long the rest takes.

Of a model that is larger than the memory, a pass reads at least what does not fit:

    seconds per token >= (model + cache - memory) / (bytes per second)

This is reached only if the same layers stay every time.  A cache that drops what was
used longest ago (*LRU*, as most caches of files do, more or less) drops each layer
just before it is wanted again, because layers are used in a cycle: with room for all
but one, it still reads every layer in every pass.  So `fit` chooses layers to be
pinned, evenly spread, and gives the others two buffers.

A draft makes a token cheaper: a pass of the target, a *scan* of its file, checks g
guesses at once and decides up to g + 1 tokens.  If each guess is kept with probability
a, a scan decides

$$t(g) = 1 + a + ... + a^g = \frac{1 - a^{g + 1}}{1 - a}$$

tokens on average.  But the draft takes memory away from the target, so its scans are
longer.  And it takes time, d for a guess.  In turn, guesses and scan take g d + s.
Both can run at once, if the draft guesses the next round already while the target still
reads (see `ahead`): it supposes that all guesses will be kept, and guesses the token
after them, too.  It is right with probability a^(g + 1); otherwise it guesses
again, in turn.  So a round takes on average

$$\max(s, (g + 1) d) + (1 - a^{g + 1}) g d$$

More buffers would not help: what they hold could as well be pinned.

References
----------
Sheng et al. 2023, arXiv:2303.06865, section 4; Leviathan et al. 2022,
arXiv:2211.17192, section 3.3, for t(g).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from npllama.config import Config
from npllama.contexts.reading import PIECE, Contents
from npllama.contexts.storage import buffer_size, read_per_pass
from npllama.cost import activation_peak, cache_bytes
from npllama.cost.roofline import offload_seconds
from npllama.cost.tables import Rows

#  ---- what stays ---------------------------------------------------------------


class Fit(NamedTuple):
    """What of a model stays in memory."""

    pinned: tuple[int, ...]  # parts, as for `Streamed`
    buffers: int
    bytes: int  # of all this


def spread(L: int, n: int) -> tuple[int, ...]:
    """Choose n of L layers, as evenly as possible: the thread reads on meanwhile.

    >>> spread(8, 3)
    (1, 4, 6)
    """
    return tuple((2 * i + 1) * L // (2 * n) for i in range(n))


def weight_room(found: Contents, pinned: Collection[int], buffers: int) -> int:
    """Bytes of memory for weights: pinned, in buffers, and on their way into one."""
    piece = 0 if found.stored == "float32" else PIECE * found.itemsize
    room = 4 * buffers * buffer_size(found, pinned) + piece
    return room + sum(map(found.bytes_of, pinned))


def fit(found: Contents, room: int) -> Fit:
    """Choose what stays in a memory.

    Two buffers rather than one; of these, the choice that reads least.

    Parameters
    ----------
    found : Contents
    room : int
        Bytes that there are for weights.

    Raises
    ------
    ValueError
        If not even one buffer fits.
    """
    L = len(found.parts) - 1
    pins = [spread(L, n) + head for n in range(L + 1) for head in ((), (L,))]
    for buffers in (2, 1):
        sizes = {pinned: weight_room(found, pinned, buffers) for pinned in pins}
        fits = [pinned for pinned in pins if sizes[pinned] <= room]
        if fits:
            best = min(fits, key=lambda p: (read_per_pass(found, p, 1), sizes[p]))
            return Fit(best, buffers, sizes[best])
    least = weight_room(found, (), 1)
    raise ValueError(
        f"{found.path}: needs {least / 1e9:.3f} GB for a buffer; there are "
        f"{max(room, 0) / 1e9:.3f} GB for weights"
    )


# BLAS's own memory, freed arrays that are kept, the tables of the interpreter.
OTHER = 48 * 2**20


class Running(NamedTuple):
    """What runs on a model: sizes of its cache and of its passes."""

    positions: int  # of the cache, per row
    new: int  # positions of the longest pass, per row
    wanted: int = 1  # positions of a pass whose probabilities are wanted, per row
    rows: int = 1


def working_bytes(config: Config, run: Running) -> int:
    """Bytes for a cache and a pass, besides the weights."""
    before = max(run.positions - run.new, 0)
    peak = activation_peak(config, run.rows, run.new, before, last=True)
    cache = cache_bytes(config, run.rows * run.positions, 4)
    # Logits, and their probabilities in float64 with what leads to them.
    logits = run.rows * run.wanted * config.vocab_size * (4 + 3 * 8)
    return OTHER + int(cache) + 4 * peak + logits


def resident_bytes() -> int:
    """Memory that this process holds now; a guess where the system does not tell."""
    try:
        words = Path("/proc/self/status").read_text().split()
        return 1024 * int(words[words.index("VmRSS:") + 1])
    except (OSError, ValueError):
        return 100 * 2**20


#  ---- in which order -----------------------------------------------------------


def lru_misses(layers: int, room: int, passes: int) -> int:
    """Layers read in some passes, if those used longest ago are dropped."""
    held: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for layer in list(range(layers)) * passes:
        if layer in held:
            held.move_to_end(layer)
            continue
        missed += 1
        if len(held) == room and held:
            held.popitem(last=False)
        if room:
            held[layer] = None
    return missed


def pinned_misses(layers: int, room: int, passes: int) -> int:
    """The same, if the first layers to come stay for ever."""
    room = min(room, layers)
    return room + (layers - room) * passes if passes else 0


def pass_seconds(
    reads: Sequence[float], computes: Sequence[float], buffers: int = 2
) -> float:
    """Time of a pass over parts that are read into buffers, and then used.

    Parameters
    ----------
    reads, computes : L floats each
        Seconds for every part.

    >>> [round(pass_seconds([1] * 32, [c] * 32), 1) for c in (0.4, 1, 2)]
    [32.4, 33.0, 65.0]
    """
    free = [0.0] * buffers  # when a buffer is free
    read = computed = 0.0
    for i, (reading, computing) in enumerate(zip(reads, computes, strict=True)):
        read = max(read, free[i % buffers]) + reading
        computed = max(computed, read) + computing
        free[i % buffers] = computed
    return computed


#  ---- with a draft -------------------------------------------------------------


class Costs(NamedTuple):
    """Seconds that the parts of a round take."""

    scan: float  # to read what of the target is not in memory
    draft: float  # to make a guess
    check: float = 0.0  # to compute a position of the target


def tokens_per_scan(acceptance: float, guesses: int) -> float:
    """Tokens that a scan decides on average."""
    return sum(acceptance**i for i in range(guesses + 1))


def in_turn(costs: Costs, acceptance: float, guesses: int) -> float:
    """Seconds per token if the target waits for the guesses."""
    scan = max(costs.scan, (guesses + 1) * costs.check)
    return (guesses * costs.draft + scan) / tokens_per_scan(acceptance, guesses)


def at_once(costs: Costs, acceptance: float, guesses: int) -> float:
    """Seconds per token if the draft guesses on while the target reads."""
    if guesses == 0:
        return in_turn(costs, acceptance, 0)
    ahead = (guesses + 1) * (costs.draft + costs.check)
    again = (1 - acceptance ** (guesses + 1)) * guesses * costs.draft
    return (max(costs.scan, ahead) + again) / tokens_per_scan(acceptance, guesses)


def best_guesses(seconds, costs: Costs, acceptance: float, most: int = 64) -> int:
    """How many guesses per round take the fewest seconds per token.

    Parameters
    ----------
    seconds : `in_turn` or `at_once`
    """
    return min(range(most + 1), key=lambda g: seconds(costs, acceptance, g))


def lru_table(layers: int, bytes_per_layer: float, storage: float) -> Rows:
    """What a pass reads of a model's layers, with room for some of them.

    Parameters
    ----------
    layers : int
    bytes_per_layer, storage : float
        Bytes, and bytes per second.
    """
    rows: Rows = [("room for", "LRU reads", "pinned reads", "s/token", "pinned")]
    for room in sorted({0, layers // 2, layers - 2, layers - 1, layers}):
        # The first pass reads all of them; what follows is what a token costs.
        each = [
            misses(layers, room, 2) - misses(layers, room, 1)
            for misses in (lru_misses, pinned_misses)
        ]
        times = [f"{n * bytes_per_layer / storage:.2f}" for n in each]
        rows.append((f"{room} of {layers} layers", *map(str, each), *times))
    return rows


def draft_table(
    held: float,
    memory: float,
    storage: float,
    draft: float,
    seconds: float,
    acceptances: Sequence[float],
) -> Rows:
    """Seconds per token of a target on storage, with a draft in memory and without.

    Parameters
    ----------
    held, memory, draft : float
        Bytes of target and cache, of memory, and of the draft in it.
    storage : float
        Bytes per second.
    seconds : float
        That a guess takes.
    """
    alone = offload_seconds(held, memory, storage)
    costs = Costs(offload_seconds(held, memory - draft, storage), seconds)
    head = ("guess kept", "guesses", "tokens/scan", "in turn, s/token")
    rows: Rows = [(*head, "guesses", "tokens/scan", "at once, s/token", "faster")]
    for a in acceptances:
        cells = [f"{a:.2f}"]
        for way in (in_turn, at_once):
            g = best_guesses(way, costs, a)
            best = way(costs, a, g)
            cells += [str(g), f"{tokens_per_scan(a, g):.2f}", f"{best:.2f}"]
        rows.append((*cells, f"{alone / best:.2f}x"))
    return rows
