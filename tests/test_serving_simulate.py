"""Three ways to share a machine: every token once, and the clock is the roofline's."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import seeds

from npllama.config import preset
from npllama.cost.formulas import operators, total
from npllama.cost.hardware import HARDWARE
from npllama.cost.roofline import FUSED, Dtypes, predict
from npllama.serving.latency import latencies
from npllama.serving.scheduler import Limits
from npllama.serving.simulate import continuous, pass_operators, roofline_clock, static
from npllama.serving.trace import Lengths, Traffic, traffic

CONFIG, MACHINE = preset("llama-2-13b"), HARDWARE["a100-40g"]
FEW = Lengths(8.0, 1.0, 6.0, 0.7, longest_prompt=20, context=32)


def trace_of(*requests):
    """(arrival, prompt, output) of each."""
    arrival, prompt, output = zip(*requests)
    return Traffic(np.array(arrival, dtype=float), np.array(prompt), np.array(output))


class Watch:
    """A clock on which a position takes a second, and that notes every pass."""

    def __init__(self):
        self.passes = []

    def __call__(self, pieces):
        self.passes.append(list(pieces))
        return float(sum(new for _, new in pieces))


def needed(trace):
    return int((trace.prompt + trace.output - 1).sum())


# ---- what every way has in common -------------------------------------------


@given(seeds, st.integers(1, 6), st.integers(0, 20), st.integers(1, 5))
@example(0, 6, 0, 4)
def test_every_token_comes_once_and_nothing_is_computed_twice_but_after_preemption(
    seed, n, more, page_size
):
    trace = traffic(np.random.default_rng(seed), n, FEW, rate=0.1)
    watch, limits = Watch(), Limits(tokens=9, requests=4, watermark=0.0)
    pages = -(-FEW.context // page_size) + more
    run = continuous(trace, watch, limits, pages, page_size)
    assert [len(one.times) for one in run.served] == trace.output.tolist()
    for one, arrival in zip(run.served, trace.arrival):
        assert one.arrival == arrival < one.times[0] and np.all(np.diff(one.times) > 0)
    assert run.positions == needed(trace) + run.recomputed
    assert run.positions == sum(new for some in watch.passes for _, new in some)
    assert run.passes == len(watch.passes)
    for some in watch.passes:
        assert sum(new for _, new in some) <= 9 and len(some) <= 4


@given(seeds, st.integers(1, 6), st.integers(1, 4))
@example(0, 6, 3)
def test_static_batches_pad_prompts_and_texts_to_the_longest(seed, n, rows):
    trace = traffic(np.random.default_rng(seed), n, FEW)
    watch = Watch()
    run = static(trace, watch, rows)
    assert [len(one.times) for one in run.served] == trace.output.tolist()
    padded = 0
    for first in range(0, n, rows):
        some = slice(first, first + rows)
        longest = trace.prompt[some].max() + trace.output[some].max() - 1
        padded += longest * len(trace.prompt[some])
    assert run.positions == padded and run.recomputed == 0
    assert all(len(some) <= rows for some in watch.passes)


# ---- worked by hand ---------------------------------------------------------


def test_who_comes_while_a_static_batch_is_written_waits_for_its_end():
    trace = trace_of((0, 3, 4), (0, 2, 1), (1, 2, 1))
    run = static(trace, Watch(), 2)
    # Both prompts padded to 3: 6 s; then 3 steps of 2 rows; then a prompt of 2.
    assert [one.times for one in run.served] == [[6, 8, 10, 12], [6], [14]]


def test_iterations_let_a_text_in_at_once_and_all_others_wait_for_its_prompt():
    trace = trace_of((0, 3, 4), (4, 9, 2))
    run = continuous(trace, Watch(), Limits(99, 9), 9, 4)
    # 3 | 1 | 1 + 9 | 1 + 1: the third token of the first text waits for 9 positions.
    assert [one.times for one in run.served] == [[3, 4, 14, 16], [14, 16]]


def test_chunks_bound_how_long_a_token_waits():
    trace = trace_of((0, 3, 6), (4, 9, 2))
    run = continuous(trace, Watch(), Limits(4, 4), 9, 4)
    # 3 | 1 | 1 + 3 | 1 + 3 | 1 + 3 | 1 + 1
    assert [one.times for one in run.served] == [[3, 4, 8, 12, 16, 18], [16, 18]]
    assert latencies(run.served).itl.max() == 4


def test_an_idle_server_waits_for_the_next_request():
    trace = trace_of((5, 3, 1), (20, 2, 2))
    for run in (
        static(trace, Watch(), 2),
        continuous(trace, Watch(), Limits(99, 9), 9, 4),
    ):
        assert [one.times for one in run.served] == [[8], [22, 23]]


def test_preempted_texts_end_and_what_is_computed_again_is_counted():
    trace = trace_of((0, 4, 9), (0, 4, 9))
    run = continuous(trace, Watch(), Limits(99, 9, watermark=0.0), 4, 4)
    assert [len(one.times) for one in run.served] == [9, 9]
    assert run.recomputed > 0 and run.positions == needed(trace) + run.recomputed


def test_a_text_that_no_pages_hold_is_refused():
    with pytest.raises(ValueError, match="12 positions; there are 8 places"):
        continuous(trace_of((0, 4, 9)), Watch(), Limits(99, 9), 2, 4)


# ---- the clock --------------------------------------------------------------


@pytest.mark.parametrize("prompt", [1, 100, 2000])
def test_a_pass_of_one_text_takes_what_the_roofline_says(prompt):
    clock = roofline_clock(CONFIG, MACHINE)
    whole = predict(CONFIG, MACHINE, 1, prompt, 2, Dtypes(), FUSED)
    assert clock([(0, prompt)]) == pytest.approx(whole.prefill.seconds)
    assert clock([(prompt, 1)]) == pytest.approx(whole.per_token)


def test_flops_of_a_pass_are_the_sum_of_its_texts_and_weights_are_read_once():
    pieces = [(0, 7), (12, 1), (30, 5)]
    ops = total(pass_operators(CONFIG, pieces, "square"))
    alone = [total(operators(CONFIG, 1, t, c, last=True)) for c, t in pieces]
    assert ops.flops == sum(one.flops for one in alone)
    rows = CONFIG.hidden_size * (7 + 1 + 5)
    single = [
        one.weights - t * CONFIG.hidden_size for one, (_, t) in zip(alone, pieces)
    ]
    assert ops.weights - rows == single[0] == single[1]
    clock = roofline_clock(CONFIG, MACHINE)
    assert clock(pieces) < sum(clock([piece]) for piece in pieces)
    assert clock(pieces) >= max(clock([piece]) for piece in pieces)
