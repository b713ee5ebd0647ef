"""Beam search on pages.

The beams of a search have most of their text in common: the prompt, and whatever was
written before they parted.  At every step some of them end and others branch.  In a
cache with a row for each beam, to branch means to copy a whole row.  On pages it means
to fork a table.  Only a page that is not full yet is copied, when one of the beams that
share it writes into it, and the last of them to write needs no copy.  So in a step
fewer pages are copied than there are beams, however long the text is.

References
----------
Kwon et al. 2023, arXiv:2309.06180, section 4.4, figure 9.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npllama.cache import KVCache
from npllama.decoding.beam import (
    Beam,
    BeamRules,
    found_enough,
    histories,
    part_ended,
    require_texts,
    successors,
)
from npllama.decoding.common import PREFILL_CHUNK, Hypothesis, Job, ranked
from npllama.sampling import log_softmax
from npllama.serving.blocks import (
    Blocks,
    Copies,
    Table,
    drop,
    fork,
    grow,
    pages_for,
    take,
)
from npllama.serving.packed import forward_packed
from npllama.serving.pages import copy_page, places
from npllama.weights import Model


def paged_beam_search(
    job: Job, rules: BeamRules, pool: KVCache, blocks: Blocks
) -> list[Hypothesis]:
    """Search for the likeliest continuations, as `beam_search` does, on pages.

    Writes
    ------
    Into free pages of the pool; at the end they are free again.

    Parameters
    ----------
    job : Job
    rules : BeamRules
    pool : KVCache
    blocks : Blocks
        The state of its pages.

    Returns
    -------
    list of Hypothesis
        At most `num_beams`, best first.

    Raises
    ------
    ValueError
        If more pages may be needed than are free.
    NothingLeft
        If `process` leaves no beam any token before a text is finished.
    """
    check_room(job, rules, blocks)
    P = blocks.page_size
    tables = [take(blocks, (), len(job.prompt))]
    try:
        logits = read_prompt(job, pool, tables[0], blocks.page_size)
        beams, finished = [Beam([], 0.0, 0)], list[Hypothesis]()
        while True:
            log_probs = job.process(histories(job, beams), log_softmax(logits))
            candidates = successors(beams, log_probs, rules.keep, job.rng)
            ended, beams = part_ended(candidates, job.ends, rules)
            finished = ranked(finished + ended)[: rules.num_beams]
            if not beams or found_enough(finished, beams[0], rules, job.room):
                return require_texts(finished)
            S, parents = (
                len(job.prompt) + len(beams[0].tokens),
                [b.parent for b in beams],
            )
            tables, copies = follow(blocks, tables, parents, S)
            for source, target in copies:
                copy_page(pool, source, target, P)
            logits = advance(job.model, pool, tables, beams, S - 1, P)
    finally:
        for table in tables:
            drop(blocks, table)


def check_room(job: Job, rules: BeamRules, blocks: Blocks) -> None:
    """Raise ValueError unless there is room for beams that share only the prompt."""
    shared = len(job.prompt) // blocks.page_size
    own = pages_for(job.capacity, blocks.page_size) - shared
    need = shared + rules.num_beams * own
    if need > len(blocks.free):
        raise ValueError(
            f"{rules.num_beams} beams of {job.capacity} positions may take {need} pages; "
            f"{len(blocks.free)} are free"
        )


def read_prompt(job: Job, pool: KVCache, table: Table, page_size: int) -> np.ndarray:
    """Run the prompt; (1, V) logits after it.  Writes into the pool."""
    where = places(table, len(job.prompt), page_size)
    cache = KVCache(pool.k, pool.v, np.zeros(1, dtype=np.int64))
    for t in range(0, len(job.prompt), PREFILL_CHUNK):
        piece = np.array(job.prompt[t : t + PREFILL_CHUNK])  # (T,)
        logits = forward_packed(job.model, [piece], cache, [where])[0]  # (1, V)
    return logits


def follow(
    blocks: Blocks, tables: Sequence[Table], parents: Sequence[int], positions: int
) -> tuple[list[Table], Copies]:
    """Give every new beam its parent's pages, with room for one more position.

    Writes
    ------
    `blocks`.

    Parameters
    ----------
    blocks : Blocks
        With enough free pages.
    tables : one for each old beam
    parents : the old beam that each new one continues
    positions : int
        Of every new beam.

    Returns
    -------
    tables : list of Table
    copies : Copies
        Pages to be copied before anything is written.
    """
    # Fork all before dropping any: otherwise a parent's pages would be dealt out.
    new = [fork(blocks, tables[parent]) for parent in parents]
    for table in tables:
        drop(blocks, table)
    copies: Copies = []
    for i, table in enumerate(new):
        new[i], some = grow(blocks, table, positions - 1, positions)
        copies += some
    return new, copies


def advance(
    model: Model,
    pool: KVCache,
    tables: Sequence[Table],
    beams: Sequence[Beam],
    start: int,
    page_size: int,
) -> np.ndarray:
    """Run the last token of every beam, all in one packed pass.

    Writes
    ------
    Into the pool.

    Parameters
    ----------
    model : Model
    pool : KVCache
    tables : B block tables
    beams : B beams
    start : int
        Positions that each has computed.
    page_size : int
        P, positions of a page.

    Returns
    -------
    (B, V) float
    """
    cache = KVCache(pool.k, pool.v, np.full(len(beams), start))
    where = [places(table, start + 1, page_size) for table in tables]
    return forward_packed(
        model, [np.array(b.tokens[-1:]) for b in beams], cache, where
    )[0]
