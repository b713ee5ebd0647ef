"""Beams on pages: the same texts and scores, and hardly anything copied."""

import numpy as np
import pytest
from goldens.tiny_models import EOS, npllama_model, tiny
from hypothesis import example, given
from hypothesis import strategies as st

from npllama import rowwise
from npllama.decoding.beam import BeamRules, beam_search
from npllama.decoding.common import Job
from npllama.decoding.stopping import at_tokens
from npllama.serving import beams as paged
from npllama.serving.beams import follow, paged_beam_search
from npllama.serving.blocks import fork, new_blocks, take
from npllama.serving.pages import new_pool


def poisoned(monkeypatch, pool, copied):
    """Fill every free page with NaN before a pass; note how many pages are copied."""

    def following(blocks, tables, parents, positions):
        new, copies = follow(blocks, tables, parents, positions)
        assert len(copies) < max(2, len(parents))
        copied.append(len(copies))
        for page in blocks.free:
            for array in (pool.k, pool.v):
                P = blocks.page_size
                array[:, :, :, page * P : (page + 1) * P] = np.nan
        return new, copies

    monkeypatch.setattr(paged, "follow", following)


@given(
    st.integers(0, 99),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 12),
    st.sampled_from([False, True, "never"]),
    st.booleans(),
)
@example(1, 3, 4, 12, False, False)
@example(2, 4, 3, 12, "never", True)
def test_beams_on_pages_find_what_beam_search_finds(seed, beams, P, new, early, drawn):
    made = tiny(seed)
    model, rules = npllama_model(made), BeamRules(beams, 1.0, early, 1)
    blocks, copied = new_blocks(90, P), []
    pool = new_pool(model.config, 90, P, "float32")
    pool.k[:] = pool.v[:] = np.nan

    def job():
        rng = np.random.default_rng(seed) if drawn else None
        return Job(model, made.prompt, new, at_tokens([EOS]), rng=rng)

    with rowwise(), pytest.MonkeyPatch.context() as patch:
        poisoned(patch, pool, copied)
        assert paged_beam_search(job(), rules, pool, blocks) == beam_search(
            job(), rules
        )
    assert len(blocks.free) == 90
    if (seed, beams, P, new, drawn) == (1, 3, 4, 12, False):
        assert sum(copied) > 0 and max(copied) == beams - 1


def test_a_step_forks_the_tables_of_the_parents_before_it_drops_any():
    blocks = new_blocks(9, 2)
    first = take(blocks, (), 3)
    tables = [first, fork(blocks, first)]
    tables, copies = follow(blocks, tables, [0, 1], 4)
    # The first writes into a copy, the last holder in place.
    assert (tables, copies) == ([(0, 2), (0, 1)], [(1, 2)])
    tables, copies = follow(blocks, tables, [1, 1], 5)
    assert (tables, copies) == ([(0, 1, 3), (0, 1, 4)], [])
    assert blocks.held[:5] == [2, 2, 0, 1, 1]


def test_a_search_that_may_not_fit_is_refused_and_touches_nothing():
    made = tiny(0)
    model, blocks = npllama_model(made), new_blocks(7, 4)
    pool = new_pool(model.config, 7, 4, "float32")
    # Five tokens and six new ones: a page for all, and two for each beam.
    job = Job(model, made.prompt, 6)
    message = "4 beams of 11 positions may take 9 pages; 7 are free"
    with pytest.raises(ValueError, match=message):
        paged_beam_search(job, BeamRules(4), pool, blocks)
    assert len(blocks.free) == 7
    assert len(paged_beam_search(job, BeamRules(3), pool, blocks)) == 3


def test_an_error_in_a_search_gives_its_pages_back():
    made, blocks = tiny(0), new_blocks(20, 2)
    pool = new_pool(npllama_model(made).config, 20, 2, "float32")

    def process(history, logits):
        if len(history[0]) > 7:
            raise KeyError
        return logits

    job = Job(npllama_model(made), made.prompt, 6, process=process)
    with pytest.raises(KeyError):
        paged_beam_search(job, BeamRules(3), pool, blocks)
    assert len(blocks.free) == 20
