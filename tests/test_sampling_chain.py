"""The everyday chain, and the title page of the part."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampling_strategies import batches, rows, shares

import npllama.sampling as s

FOLDER = Path(s.__file__).parent


@given(batches(), shares(0.2, 3), st.sampled_from([1, 2, 12]), shares(0.05, 1))
def test_the_chain_is_temperature_then_top_k_then_top_p(batch, t, k, p):
    by_hand = s.softmax(s.top_p(s.top_k(s.temperature(batch, t), k), p))
    probs = s.distribution(batch, temperature=t, top_k=k, top_p=p)
    assert probs.dtype == np.float64 and probs.tobytes() == by_hand.tobytes()
    steps = [
        lambda x: s.temperature(x, t),
        lambda x: s.top_k(x, k),
        lambda x: s.top_p(x, p),
    ]
    assert s.softmax(s.apply(batch, steps)).tobytes() == by_hand.tobytes()
    assert s.apply(batch, []).tobytes() == batch.tobytes()


@given(batches())
def test_temperature_zero_is_greedy(batch):
    probs = s.distribution(batch, temperature=0, top_k=3, top_p=0.5)
    assert (probs.argmax(axis=-1) == s.greedy(batch)).all()
    assert (np.sort(probs, axis=-1)[:, -1] == 1).all() and probs.sum() == len(batch)


@given(rows())
def test_by_default_the_chain_is_softmax(row):
    assert s.distribution(row).tobytes() == s.softmax(row).tobytes()


def test_the_order_of_temperature_and_truncation_matters():
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    hot_first = s.top_p(s.temperature(row, 3.0), 0.75)
    hot_last = s.temperature(s.top_p(row, 0.75), 3.0)
    assert (hot_first > -np.inf).sum() == 3 and (hot_last > -np.inf).sum() == 2


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.5}, {"top_p": -1}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        s.distribution(np.zeros(3, np.float32), **options)


def test_the_title_page_names_every_chapter_and_every_sampler():
    page = s.__doc__
    for chapter in FOLDER.glob("[a-z]*.py"):
        assert chapter.stem in page, chapter.stem
    helpers = {
        "MirostatStep",
        "Detection",
        "GreenList",
        "SynthID",
        "SynthIDState",
        "sample",
    }
    helpers |= {"softmax", "log_softmax", "greedy", "apply", "distribution"}
    helpers |= {"SynthIDDetector", "NothingLeft"}
    for name in set(s.__all__) - helpers:
        told = name.split("_")[0] in ("synthid", "mirostat", "mean", "weighted")
        assert name in page or told, name
    assert len(set(s.__all__)) == len(s.__all__)


def test_chapters_are_short_enough_to_read():
    for chapter in FOLDER.glob("*.py"):
        assert len(chapter.read_text().splitlines()) < 400, chapter.name
