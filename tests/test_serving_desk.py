"""The thread that owns the model, and what is told of its work."""

import re
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from strategies import DISTINCT, random_model

from npllama import FlopCounter, GenerationConfig, generate
from npllama.serving.desk import Desk
from npllama.serving.engine import Engine
from npllama.serving.metrics import Histogram, exposition, histograms
from npllama.serving.requests import Request
from npllama.serving.writing import Event

MODEL = random_model(DISTINCT, 0)
PATIENCE = 30  # seconds, on a machine that is busy


class Inbox:
    """Where events arrive."""

    def __init__(self):
        self.events, self.whole = [], threading.Event()

    def take(self, event):
        self.events.append(event)
        if event.reason is not None:
            self.whole.set()

    def tokens(self):
        assert self.whole.wait(PATIENCE)
        return [event.token for event in self.events]


@contextmanager
def running(desk):
    thread = threading.Thread(target=desk.run, daemon=True)
    thread.start()
    yield thread
    desk.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def ask(seed, most=9):
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=most)
    return Request([1, 2, 3, seed % 5], config, np.random.default_rng(seed))


def test_every_client_gets_its_own_text_from_any_thread():
    desk = Desk(Engine(MODEL, 40, 3))
    inboxes = [Inbox() for _ in range(8)]
    with running(desk):
        submitting = [
            threading.Thread(target=desk.submit, args=(ask(i), inbox.take))
            for i, inbox in enumerate(inboxes)
        ]
        for thread in submitting:
            thread.start()
        found = [inbox.tokens() for inbox in inboxes]
    for i, tokens in enumerate(found):
        request = ask(i)
        alone = generate(MODEL, request.prompt, request.config, request.rng)
        assert tokens == alone.tokens
    assert desk.engine.statistics().pages_used == 0


def test_an_event_that_comes_before_its_request_was_noted_is_kept():
    desk, inbox = Desk(Engine(MODEL, 40, 3)), Inbox()
    submit, id = desk.engine.submit, None

    def ahead(request):
        # The engine's thread is quicker than the one that submits.
        id = submit(request)
        while desk.engine.busy:
            desk.deliver(desk.engine.step())
        return id

    desk.engine.submit = ahead
    id = desk.submit(ask(0), inbox.take)
    assert len(inbox.tokens()) == 9 and {event.id for event in inbox.events} == {id}
    desk.abort(id)  # it has ended: nothing happens
    desk.deliver(desk.engine.step())
    assert len(inbox.events) == 9 and not desk._early and not desk._waiting


def test_a_request_that_is_given_up_holds_no_page():
    desk, inbox = Desk(Engine(MODEL, 40, 3)), Inbox()
    id = desk.submit(ask(0, most=50), inbox.take)
    desk.deliver(desk.engine.step())
    assert desk.engine.statistics().pages_used
    desk.abort(id)
    with running(desk):
        inbox.tokens()
    assert inbox.events[-1].reason == "abort"
    assert desk.engine.statistics().pages_used == 0 and not desk._waiting


def test_a_step_that_fails_is_told_to_those_who_wait_and_to_no_others():
    desk, inbox, later = Desk(Engine(MODEL, 40, 3)), Inbox(), Inbox()
    step, faults = desk.engine.step, [MemoryError("no room")]

    def faulty():
        if faults:
            raise faults.pop()
        return step()

    desk.engine.step = faulty
    desk.submit(ask(0), inbox.take)
    with running(desk) as thread:
        assert inbox.tokens() == [None]
        assert isinstance(inbox.events[-1].error, MemoryError)
        desk.submit(ask(1), later.take)
        assert len(later.tokens()) == 9
        assert thread.is_alive() and desk.failed is None
    assert not desk._early and desk.engine.statistics().pages_used == 0


def test_a_desk_whose_engine_fails_for_nobody_says_so():
    desk = Desk(Engine(MODEL, 40, 3))
    desk.engine.submit(ask(0))  # past the desk: nobody waits for it
    desk.engine.step = lambda: 1 / 0
    desk.run()
    assert isinstance(desk.failed, ZeroDivisionError)


def test_flops_and_times_are_those_of_the_work():
    ticks = iter(range(100))
    desk, inbox = Desk(Engine(MODEL, 40, 3), clock=lambda: next(ticks)), Inbox()
    with running(desk):
        desk.submit(ask(3, most=4), inbox.take)
        inbox.tokens()
    with FlopCounter() as count:
        request = ask(3, most=4)
        generate(MODEL, request.prompt, request.config, request.rng)
    page = desk.metrics('a "model"')
    value = dict(re.findall(r"^npllama:(\w+)\{[^}]*\} (\S+)$", page, re.M))
    assert int(value["flops_total"]) == count.total.flops
    assert float(value["time_to_first_token_seconds_sum"]) == 1  # tick 0 to tick 1
    assert float(value["inter_token_latency_seconds_sum"]) == 3
    assert value["inter_token_latency_seconds_count"] == "3"
    assert float(value["e2e_request_latency_seconds_sum"]) == 4
    assert int(value["generation_tokens_total"]) == 4
    assert r'model_name="a \"model\""' in page
    assert re.search(r'request_success_total\{.*finished_reason="length"\} 1', page)


# ---- Prometheus' text ---------------------------------------------------------


def test_a_histogram_counts_all_that_is_at_most_a_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    statistics = Desk(Engine(MODEL, 40, 3)).engine.statistics()
    page = exposition(statistics, {"x_seconds": histogram}, 0, "m")
    assert re.findall(r'le="(\S+)"\} (\d+)', page) == [
        ("1.0", "2"),
        ("2.0", "4"),
        ("+Inf", "5"),
    ]
    assert 'npllama:x_seconds_sum{model_name="m"} 14.0' in page
    assert 'npllama:x_seconds_count{model_name="m"} 5' in page


def test_every_metric_is_described_once_and_counters_end_in_total():
    statistics = Desk(Engine(MODEL, 40, 3)).engine.statistics()
    page = exposition(statistics, histograms(), 7, "m")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page, re.M))
    assert len(kinds) == page.count("# TYPE") == page.count("# HELP")
    for name, kind in kinds.items():
        assert name.endswith("_total") == (kind == "counter")
        assert f"\n# TYPE {name}" in page
    assert page.endswith("\n") and "\n\n" not in page


@pytest.mark.parametrize("reason", ["abort", "length"])
def test_what_nobody_waits_for_is_kept_unless_it_was_given_up(reason):
    desk = Desk(Engine(MODEL, 40, 3))
    desk.deliver([Event(7, 0, reason=reason)])
    assert bool(desk._early) == (reason == "length")
