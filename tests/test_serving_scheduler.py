"""Who gets how much in a step: nobody waits for ever, and nobody overtakes."""

from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_serving_pages import check as check_pages

from npllama.serving.blocks import chain, copied, new_blocks, publish
from npllama.serving.scheduler import (
    Limits,
    State,
    Text,
    arrived,
    forked,
    left,
    replaced,
    schedule,
    shares,
    stopped,
)


class Wish(NamedTuple):
    """A text that will be asked for."""

    arrival: int  # step
    prompt: int
    output: int
    width: int = 1
    guesses: int = 0  # before every token, none of them right
    alike: bool = False  # whether its prompt is that of all others that are alike


class Case(NamedTuple):
    wishes: list[Wish]
    limits: Limits
    pages: int
    page_size: int


@st.composite
def cases(draw):
    requests = draw(st.integers(1, 4))
    tokens, P = draw(st.integers(requests, 12)), draw(st.integers(1, 4))
    wishes = [
        Wish(
            draw(st.integers(0, 9)),
            draw(st.integers(1, 12)),
            draw(st.integers(1, 9)),
            draw(st.integers(1, requests)),
            draw(st.sampled_from([0, 0, 3])),
            draw(st.booleans()),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    # Every text fits alone, and most times not much more does.
    longest = max(w.prompt + w.output + w.guesses for w in wishes)
    pages = -(-longest // P) + draw(st.sampled_from([0, 1, 3, 20]))
    chunk = draw(st.none() | st.integers(1, 5))
    watermark = draw(st.sampled_from([0.0, 0.01, 0.3]))
    limits = Limits(tokens, requests, chunk, watermark)
    return Case(sorted(wishes), limits, pages, P)


class World:
    """Texts that grow as the wishes say, without any model."""

    def __init__(self, case):
        self.case, self.steps = case, 0
        self.state = State((), 0, new_blocks(case.pages, case.page_size))
        self.coming = list(enumerate(case.wishes))
        self.next = len(case.wishes)
        self.wish = dict(self.coming)
        self.first, self.done = {}, []  # step of the first token; ids that ended
        self.position = {}  # positions that each text has computed
        self.lost = {}  # those that it had when it was preempted
        self.log = []

    def arrive(self):
        while self.coming and self.coming[0][1].arrival <= self.steps:
            id, wish = self.coming.pop(0)
            tokens = range(wish.prompt) if wish.alike else [id] * wish.prompt
            names = chain(tokens, self.case.page_size)
            guessed = wish.guesses if wish.width == 1 else 0
            text = Text(id, wish.prompt, guessed, names=names, width=wish.width)
            self.state = arrived(self.state, text)

    def step(self):
        self.arrive()
        before = self.state._replace(blocks=copied(self.state.blocks))
        plan = schedule(self.state, self.case.limits)
        assert self.state == before  # a plan is only a plan
        self.check(before, plan)
        self.state, self.steps = plan.state, self.steps + 1
        for text in plan.state.texts[: plan.state.running]:
            P = self.case.page_size
            publish(self.state.blocks, text.table, text.names[: text.computed // P])
        for text in plan.state.texts[: plan.state.running]:
            if text.missing == 0:
                self.decide(text)
        self.log.append(plan)
        return plan

    def decide(self, text):
        if text.width > 1:
            others = list(range(self.next, self.next + text.width - 1))
            self.next += len(others)
            self.state = forked(self.state, text.id, others)
            for other in others:
                self.wish[other] = self.wish[text.id]
                self.position[other] = self.position[text.id]
            for id in [text.id, *others]:
                self.token(next(t for t in self.state.texts if t.id == id))
        else:
            self.token(text)

    def token(self, text):
        self.first.setdefault(text.id, self.steps)
        wish, decided = self.wish[text.id], text.decided + 1
        self.lost.pop(text.id, None)
        if decided == wish.prompt + wish.output:
            self.state = left(self.state, [text.id])
            self.done.append(text.id)
            return
        guessed = min(wish.guesses, wish.prompt + wish.output - decided - 1)
        self.position[text.id] = decided - 1
        new = text._replace(decided=decided, guessed=guessed, computed=decided - 1)
        self.state = replaced(self.state, new)

    def check(self, before, plan):
        """Laws of every step."""
        limits, after = self.case.limits, plan.state
        running, waiting = (
            before.texts[: before.running],
            before.texts[before.running :],
        )
        check_pages(after.blocks, [text.table for text in after.texts])
        assert sum(s.new for s in plan.segments) <= limits.tokens
        assert sum(t.width for t in after.texts[: after.running]) <= limits.requests
        assert all(1 <= s.new <= (limits.chunk or 99) for s in plan.segments)
        assert [t.id for t in after.texts] == [t.id for t in before.texts]
        assert not (plan.admitted and plan.preempted)
        assert (
            plan.preempted
            == [t.id for t in before.texts[after.running : before.running]][::-1]
        )
        assert plan.admitted == [t.id for t in waiting][: len(plan.admitted)]
        assert all(not t.table and not t.computed for t in after.texts[after.running :])
        # Progress: the oldest text always gets something.
        assert not before.texts or plan.segments[0].id == before.texts[0].id
        # Nobody who waits for the next token alone is held up, unless pages ran out.
        served = {s.id for s in plan.segments}
        assert served >= {t.id for t in running if t.decodes} - set(plan.preempted)
        self.check_positions(plan)
        spare = -(-limits.watermark * self.case.pages // 1)
        if plan.admitted and after.running > 1:
            assert len(after.blocks.free) >= spare

    def check_positions(self, plan):
        """Every position is computed once, unless the text was preempted."""
        after = {text.id: text for text in plan.state.texts}
        for id in plan.preempted:
            self.lost[id] = max(self.lost.get(id, 0), self.position.pop(id))
        for id, start, new, recomputed in plan.segments:
            text, lost = after[id], self.lost.get(id, 0)
            assert recomputed == max(0, min(start + new, lost) - start)
            if id in plan.admitted:
                assert start == plan.hits[id] < text.decided
                assert start % self.case.page_size == 0
            else:
                assert start == self.position[id]
            self.position[id] = start + new
            assert text.computed == start + new <= text.known
            assert len(text.table) * self.case.page_size >= text.computed


def run(case):
    world = World(case)
    while world.coming or world.state.texts:
        world.step()
        assert world.steps < 2000
    return world


TIGHT = Case([Wish(0, 4, 9), Wish(0, 4, 9), Wish(0, 4, 9)], Limits(12, 3), 4, 4)
FORKS = Case([Wish(0, 5, 4, 3), Wish(0, 3, 9), Wish(1, 6, 5, 2)], Limits(8, 4), 6, 2)
GUESSES = Case(
    [Wish(0, 5, 4, 1, 3), Wish(0, 7, 9), Wish(1, 6, 5, 1, 3)], Limits(4, 3), 9, 2
)
# Pages so large that none of them is full when it is lost.
AGAIN = Case([Wish(0, 7, 9), Wish(0, 6, 9), Wish(1, 7, 9)], Limits(12, 3), 3, 8)
ALIKE = Case([Wish(r, 9, 3, 1, 0, True) for r in (0, 1, 4, 5)], Limits(9, 4, 5), 14, 2)


@given(cases())
@example(TIGHT)
@example(FORKS)
@example(GUESSES)
@example(ALIKE)
def test_whatever_comes_every_text_ends_and_every_page_is_free_again(case):
    world = run(case)
    assert len(world.done) == sum(wish.width for wish in case.wishes)
    assert len(world.state.blocks.free) == case.pages


def test_what_preemption_took_is_computed_again_and_counted():
    world = World(AGAIN)
    while world.coming or world.state.texts:
        world.step()
    assert sum(len(plan.preempted) for plan in world.log) > 0
    recomputed = sum(s.recomputed for plan in world.log for s in plan.segments)
    once = sum(wish.prompt + wish.output - 1 for wish in AGAIN.wishes)
    computed = sum(s.new for plan in world.log for s in plan.segments)
    assert recomputed > 0 and computed == once + recomputed


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4), st.integers(1, 9))
@example(6, 9, 4, 4)
def test_equal_prompts_get_their_first_tokens_in_order_of_arrival(n, prompt, R, tokens):
    limits = Limits(max(R, tokens), R)
    wishes = [Wish(r // 2, prompt, 1 + r % 3) for r in range(n)]
    world = run(Case(wishes, limits, 12, 3))
    steps = [world.first[r] for r in range(n)]
    assert steps == sorted(steps)


def test_preempted_texts_are_the_latest_and_wait_in_front():
    world = World(TIGHT)
    world.step()
    assert [t.computed for t in world.state.texts] == [4, 4, 4]
    plan = world.step()  # three want a second page, one is left
    assert (plan.preempted, plan.admitted) == ([2], [])
    late = Text(9, 1)
    state = arrived(plan.state, late)
    assert [t.id for t in state.texts] == [0, 1, 2, 9] and state.running == 2
    assert state.texts[2].again == 4 and state.texts[2].table == ()
    run(TIGHT)


def test_nobody_is_admitted_in_a_step_that_preempts_though_he_would_fit():
    limits, names = Limits(20, 3, watermark=0.0), chain([1, 2, 3, 4], 2)
    state = State(
        (Text(0, 4, names=names), Text(1, 4, names=names)), 0, new_blocks(4, 2)
    )
    state = schedule(state, limits).state  # each computes the same two pages
    for text in state.texts:
        publish(state.blocks, text.table, names)
    state = replaced(state, *(text._replace(decided=5) for text in state.texts))
    plan = schedule(state, limits)
    # The first has the third page; what the second had, it could find again.
    assert (plan.preempted, plan.admitted) == ([1], [])
    assert schedule(plan.state, limits).hits == {1: 4}


def test_nobody_is_admitted_past_one_that_does_not_fit():
    blocks = new_blocks(4, 2)
    state = State((Text(0, 5), Text(1, 3), Text(2, 1)), 0, blocks)
    plan = schedule(state, Limits(20, 3, watermark=0.0))
    assert plan.admitted == [0]  # the second needs two pages, one is left
    assert plan.state.running == 1


def test_samples_of_one_prompt_need_a_place_each():
    state = State((Text(0, 3), Text(1, 3, width=2), Text(2, 3)), 0, new_blocks(9, 2))
    assert schedule(state, Limits(20, 2)).admitted == [0]
    assert schedule(state, Limits(20, 3)).admitted == [0, 1]


def test_a_guess_in_the_place_of_a_lost_one_is_not_computed_again():
    lost = Text(0, 4, guessed=3, again=7)
    plan = schedule(State((lost,), 0, new_blocks(9, 2)), Limits(20, 2))
    assert plan.segments == [(0, 0, 7, 7)]
    # No guess was right: one token is decided, and other guesses follow.
    text = plan.state.texts[0]._replace(decided=5, guessed=3, computed=4)
    plan = schedule(replaced(plan.state, text), Limits(20, 2))
    assert plan.segments == [(0, 4, 4, 0)]


def test_a_watermark_holds_back_the_second_text_but_never_the_first():
    state = State((Text(0, 8), Text(1, 2)), 0, new_blocks(10, 2))
    assert schedule(state, Limits(20, 3, watermark=0.5)).admitted == [0, 1]
    assert schedule(state, Limits(20, 3, watermark=0.51)).admitted == [0]
    big = State((Text(0, 20), Text(1, 2)), 0, new_blocks(10, 2))
    assert schedule(big, Limits(20, 3, watermark=0.5)).admitted == [0]


def test_a_long_prompt_delays_nobody_who_decodes():
    texts = [Text(0, 100), Text(1, 8, computed=7), Text(2, 9, 3, computed=8)]
    assert shares(texts, Limits(50, 3)) == [48, 1, 1]
    assert shares(texts, Limits(50, 3, chunk=10)) == [10, 1, 4]
    assert shares(texts[1:], Limits(3, 3)) == [1, 2]
    assert shares(texts, Limits(3, 3)) == [1, 1, 1]


def test_guesses_go_on_in_the_next_step_if_the_budget_is_short():
    world = World(Case([Wish(0, 2, 9, 1, 3)], Limits(2, 1), 9, 2))
    news = [world.step().segments[0].new for _ in range(5)]
    assert news == [2, 2, 1, 2, 2]


def test_a_text_takes_what_others_have_computed_but_its_last_token():
    world = World(ALIKE)
    for _ in range(9):
        world.step()
    hits = [plan.hits for plan in world.log if plan.hits]
    # Pages of two: at most eight of nine positions, as far as they were published.
    assert hits == [{0: 0}, {1: 4}, {2: 8}, {3: 8}]


def test_one_that_must_compute_all_takes_nothing_from_others():
    blocks, names = new_blocks(8, 2), chain([1, 2, 3, 4], 2)
    state = State((Text(0, 4, names=names),), 0, blocks)
    state = schedule(state, Limits(9, 3)).state
    publish(state.blocks, state.texts[0].table, names)
    for reuse, found in [(True, 2), (False, 0)]:
        new = Text(1, 4, names=names, reuse=reuse)
        assert schedule(arrived(state, new), Limits(9, 3)).hits == {1: found}


def test_nothing_to_do_is_an_empty_plan():
    plan = schedule(State((), 0, new_blocks(2, 2)), Limits())
    assert plan.segments == plan.admitted == plan.preempted == plan.copies == []


def test_texts_leave_wherever_they_stand():
    world = World(TIGHT)
    world.step()
    world.step()
    state = left(world.state, [0])
    assert ([t.id for t in state.texts], state.running) == ([1, 2], 1)
    state = left(state, [2])
    assert ([t.id for t in state.texts], state.running) == ([1], 1)
    assert left(state, []) == state
    state = left(state, [1])
    assert state.running == 0 and len(state.blocks.free) == 4


def test_all_can_be_stopped_and_begin_again():
    state = State((Text(0, 4), Text(1, 5)), 0, new_blocks(4, 4))
    plan = schedule(state, Limits(6, 3))
    state = stopped(plan.state)
    assert state.running == 0 and len(state.blocks.free) == 4
    assert [(t.computed, t.again, t.table) for t in state.texts] == [
        (0, 4, ()),
        (0, 2, ()),
    ]
    plan = schedule(state, Limits(9, 3))
    assert [segment.recomputed for segment in plan.segments] == [4, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tokens=0), "tokens is 0; a whole number, 1 or more"),
        (dict(requests=2.0), "requests is 2.0; a whole number"),
        (dict(requests=True), "requests is True; a whole number"),
        (dict(chunk=0), "chunk is 0; a whole number"),
        (dict(tokens=None), "tokens is None; a whole number"),
        (dict(tokens=8, requests=9), "9 requests with 8 tokens a step"),
        (dict(watermark=1.0), "watermark is 1.0; from 0 to below 1"),
        (dict(watermark=-0.1), "watermark is -0.1"),
        (dict(watermark=float("nan")), "watermark is nan"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Limits(**options)
