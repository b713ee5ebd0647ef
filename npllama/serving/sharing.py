"""What sharing saves: several texts of one prompt hold its pages once.

*Samples* of one prompt have nothing in common after it.  So n of them share the full
pages of the prompt, and nothing else: of n ceil(S / P) pages they save
(n - 1) floor(p / P).  A prompt that is shorter than a page shares nothing, and so
what is saved on average is less than at the average length.

*Beams* share more.  In each step the search keeps the best extensions of all beams
together, so some beams end, and the living ones descend from fewer and fewer.  All of
them agree up to their last common ancestor, a few pages back.  On pages a search needs
only `fork` and `drop`: new beams fork their parents' tables, then the old are dropped.

How far back the common ancestor lies depends on the model.  `turnover` puts it in one
number: the probability that in one step a beam is replaced by the extension of another
one, drawn at random.  No such number was published; 0.12 gives the published savings
on Alpaca, and models can be measured (`distinct_lost`).

References
----------
Kwon et al. 2023, arXiv:2309.06180, sections 4.4 and 6.3, figure 15.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from npllama.serving.blocks import drop, fork, grow, new_blocks, pages_for, take
from npllama.serving.trace import Traffic

Parents = Callable[[int], Sequence[int]]  # of how many beams -> the parent of each


def saved_by_samples(trace: Traffic, n: int, page_size: int) -> float:
    """The share of all pages that n samples per prompt save, averaged over their steps.

    In a text's r-th step it has prompt + r - 1 positions.
    """
    saved = held = 0
    for prompt, output in zip(trace.prompt.tolist(), trace.output.tolist()):
        positions = prompt + np.arange(output)  # (T,)
        held += n * int((-(-positions // page_size)).sum())
        saved += (n - 1) * (prompt // page_size) * output
    return saved / held


def saved_by_forks(
    trace: Traffic, n: int, page_size: int, parents: Parents
) -> tuple[float, int]:
    """The same for any way of forking, with page tables that are really forked.

    Parameters
    ----------
    trace : Traffic
    n : int
        Texts per prompt.
    page_size : int
    parents : function
        Called with n before every step but the first; returns, for each of the n
        texts, the number of the one it continues: ``range(n)`` for samples.

    Returns
    -------
    saved : float
    copies : int
        The largest number of pages that one step had to copy.
    """
    saved = held = copies = 0
    for prompt, output in zip(trace.prompt.tolist(), trace.output.tolist()):
        most = n * pages_for(prompt + output, page_size)
        blocks = new_blocks(most + n, page_size)
        first = take(blocks, (), prompt)
        tables = [first, *(fork(blocks, first) for _ in range(n - 1))]
        for S in range(prompt, prompt + output):
            if S > prompt:
                # All are forked before any is dropped: a parent may live on twice.
                forks = [fork(blocks, tables[parent]) for parent in parents(n)]
                for table in tables:
                    drop(blocks, table)
                grown = [grow(blocks, table, S - 1, S) for table in forks]
                tables = [table for table, _ in grown]
                copies = max(copies, sum(len(copied) for _, copied in grown))
            pages = n * pages_for(S, page_size)
            held += pages
            saved += pages - (len(blocks.held) - len(blocks.free))
    return saved / held, copies


def turnover(rng: np.random.Generator, share: float) -> Parents:
    """The parents of beams, if each beam is replaced with a given probability.

    Parameters
    ----------
    rng : np.random.Generator
    share : float
        0 is sampling: nobody is replaced; 1 draws every parent at random.
    """

    def parents(n: int) -> list[int]:
        others = rng.integers(0, n, n)
        return np.where(rng.random(n) < share, others, np.arange(n)).tolist()

    return parents


def distinct_lost(steps: Sequence[Sequence[int]]) -> float:
    """The share of beams that have no extension in the next step, on average.

    Parameters
    ----------
    steps : the parents of all beams, step by step, as a search chose them
    """
    lost = [1 - len(set(parents)) / len(parents) for parents in steps]
    return float(np.mean(lost))
