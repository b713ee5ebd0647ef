"""Traffic has the means it was asked for; latencies are what vLLM's benchmark says."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import seeds

from npllama.serving.latency import Served, Targets, goodput, latencies
from npllama.serving.trace import ALPACA, SHAREGPT, arrivals, lognormal, traffic


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- arrivals ---------------------------------------------------------------


@given(
    seeds,
    st.integers(1, 50),
    st.sampled_from([0.5, 2.0, 30.0]),
    st.sampled_from([0.25, 1.0, 4.0, math.inf]),
)
@example(0, 40, 2.0, 1.0)
def test_requests_come_in_order_and_take_exactly_n_over_rate(seed, n, rate, burstiness):
    times = arrivals(rng(seed), n, rate, burstiness)
    assert len(times) == n and (np.diff(times) >= 0).all() and times[0] > 0
    assert times[-1] == pytest.approx(n / rate)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma_of_the_shape_that_was_asked_for(burstiness):
    gaps = np.diff(arrivals(rng(), 20_000, 5.0, burstiness))
    # A Gamma distribution of shape b has variance mean² / b.
    assert gaps.mean() == pytest.approx(0.2, rel=0.01)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1 / burstiness, rel=0.1)
    drawn = np.cumsum(rng().gamma(burstiness, 1 / (5 * burstiness), 20_000))
    np.testing.assert_allclose(
        arrivals(rng(), 20_000, 5.0, burstiness), drawn / drawn[-1] * 4000
    )


def test_an_endless_rate_means_that_all_are_there():
    assert arrivals(rng(), 3, math.inf).tolist() == [0, 0, 0]
    assert arrivals(rng(), 3, 2.0, math.inf).tolist() == [0.5, 1, 1.5]


@pytest.mark.parametrize(
    "wrong", [(0, 1.0, 1.0), (3, 0.0, 1.0), (3, 1.0, 0.0), (3, math.nan, 1.0)]
)
def test_senseless_arrivals_are_refused(wrong):
    with pytest.raises(ValueError, match="all must be above 0"):
        arrivals(rng(), *wrong)


# ---- lengths ----------------------------------------------------------------


@pytest.mark.parametrize("cv2", [0.0, 0.5, 3.0])
def test_lengths_have_the_mean_and_the_spread_that_were_asked_for(cv2):
    lengths = lognormal(rng(), 5000, 60.0, cv2, 2048)
    assert lengths.mean() == pytest.approx(60, rel=0.002)
    assert lengths.var() / lengths.mean() ** 2 == pytest.approx(cv2, abs=0.02)
    assert lengths.min() >= 1 and lengths.max() <= 2048
    assert lengths.dtype == np.int64


@pytest.mark.parametrize("lengths", [SHAREGPT, ALPACA])
def test_traces_have_the_published_means_and_fit_the_context(lengths):
    trace = traffic(rng(), 5000, lengths, rate=2.0)
    assert trace.prompt.mean() == pytest.approx(lengths.prompt, rel=0.002)
    assert trace.output.mean() == pytest.approx(lengths.output, rel=0.002)
    assert trace.prompt.max() <= 1024 and trace.output.min() >= 1
    assert (trace.prompt + trace.output).max() <= 2048
    assert trace.arrival[-1] == pytest.approx(2500)
    again = traffic(rng(), 5000, lengths, rate=2.0)
    assert all((a == b).all() for a, b in zip(trace, again))


def test_senseless_lengths_are_refused():
    for mean, cv2 in ((0.5, 1.0), (10.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="mean"):
            lognormal(rng(), 3, mean, cv2, 100)


# ---- latencies --------------------------------------------------------------

# Worked by hand: a text of three tokens that waited, one of a single token, one of two.
SERVED = [
    Served(1.0, [3.0, 3.5, 5.0]),
    Served(2.0, [2.25]),
    Served(4.0, [5.0, 8.0]),
]


def test_latencies_of_three_requests_worked_by_hand():
    found = latencies(SERVED)
    assert found.ttft.tolist() == [2.0, 0.25, 1.0]
    assert found.e2el.tolist() == [4.0, 0.25, 4.0]
    assert found.tpot[[0, 2]].tolist() == [1.0, 3.0] and np.isnan(found.tpot[1])
    assert found.mean_tpot == 2.0  # the request of one token is left out
    assert sorted(found.itl.tolist()) == [0.5, 1.5, 3.0]
    assert found.itl.mean() == pytest.approx(5 / 3)  # pooled: not the mean of TPOT
    assert found.normalised == pytest.approx((4 / 3 + 0.25 + 2) / 3)
    assert found.duration == 8.0 and found.throughput == 6 / 8


@pytest.mark.parametrize(
    "targets, good",
    [
        (Targets(), 3),
        (Targets(ttft=1.0), 2),
        (Targets(ttft=0.5), 1),
        (Targets(tpot=1.0), 2),
        (Targets(tpot=0.0), 1),  # of the request of one token it is 0
        (Targets(e2el=4.0), 3),
        (Targets(e2el=3.9), 1),
        (Targets(ttft=1.0, tpot=1.0), 1),
        (Targets(ttft=0.1), 0),
    ],
)
def test_goodput_counts_requests_that_meet_all_targets(targets, good):
    assert goodput(latencies(SERVED), targets) == good / 8


@given(seeds, st.integers(1, 6))
@example(1, 4)
def test_first_token_and_gaps_add_up_to_the_whole(seed, n):
    source = rng(seed)
    served = []
    for _ in range(n):
        arrival = source.exponential()
        gaps = source.exponential(size=int(source.integers(1, 9)))
        served.append(Served(arrival, (arrival + np.cumsum(gaps)).tolist()))
    found = latencies(served)
    gaps = np.split(found.itl, np.cumsum(found.tokens - 1)[:-1])
    for i, mine in enumerate(gaps):
        assert found.ttft[i] + mine.sum() == pytest.approx(found.e2el[i])
        if len(mine):
            assert found.tpot[i] == pytest.approx(mine.mean())
    assert found.throughput * found.duration == pytest.approx(found.tokens.sum())


def test_a_request_without_a_token_is_refused():
    for wrong in ([], [Served(0.0, [])]):
        with pytest.raises(ValueError, match="at least one token"):
            latencies(wrong)
