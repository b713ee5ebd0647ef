"""Stop rules see the text, however it was cut into tokens."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npllama
from npllama.decoding.stopping import Trimmer, after_seconds, at_strings, trim
from npllama.generation.task import plan_of, reason_to_end

TEXT = st.text("abé", max_size=12)
STRINGS = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3)


class Pieces:
    """A vocabulary that is a list of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, token):
        return self.pieces[token]


def cut(content, data):
    """Cut bytes into pieces at random, also within a character."""
    places = data.draw(st.sets(st.integers(0, len(content))))
    edges = sorted({0, len(content), *places})
    return [content[a:b] for a, b in zip(edges, edges[1:])]


@given(TEXT, STRINGS, st.data())
def test_a_stop_string_is_found_at_its_first_end_whatever_the_tokens(
    text, strings, data
):
    pieces = cut(text.encode(), data)
    stop = at_strings(Pieces(pieces), strings)
    stops = [n for n in range(len(pieces) + 1) if stop(list(range(n)))]
    ends = [
        text.encode().find(s.encode()) + len(s.encode()) for s in strings if s in text
    ]
    lengths = [len(b"".join(pieces[:n])) for n in range(len(pieces) + 1)]
    expected = [n for n, size in enumerate(lengths) if ends and size >= min(ends)]
    assert stops[:1] == expected[:1]


@given(TEXT, STRINGS, st.data())
def test_trimming_a_stream_is_trimming_the_text(text, strings, data):
    places = data.draw(st.sets(st.integers(0, len(text))))
    edges = sorted({0, len(text), *places})
    trimmer, shown = Trimmer(strings), ""
    for a, b in zip(edges, edges[1:]):
        shown += trimmer.push(text[a:b])
        assert trim(text, strings).startswith(shown)
    assert shown + trimmer.flush() == trim(text, strings)


@pytest.mark.parametrize(
    ("pushed", "shown"),
    [
        (["ok\nUser: ", "\ufffd"], "ok\n"),
        (["ok\nUser:", " \ufffd"], "ok\n"),
        (["ok\n", "User: ", "\ufffd", "\ufffd"], "ok\n"),
        (["ok\nUser: \ufffd"], "ok\n"),
        (["User: ", "\ufffd"], ""),
        (["ok\ufffdUser: ", "\ufffd"], "ok\ufffd"),
        (["ok\nUser:", "\ufffd"], "ok\nUser:\ufffd"),
    ],
)
def test_nothing_is_shown_after_the_stop_string_not_even_half_a_character(
    pushed, shown
):
    trimmer = Trimmer(["User: "])
    assert "".join([*map(trimmer.push, pushed), trimmer.flush()]) == shown
    assert trim("".join(pushed), ["User: "]) == shown


BROKEN, WHOLE = bytes([0xE1]), "\ufffd".encode()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("bytes_", "stop", "text", "reason"),
    [
        # bytes that are no text are shown as U+FFFD, but it did not come
        (BROKEN * 4, "\ufffd", "\ufffd" * 4, "length"),
        (BROKEN * 4, "\ufffd\ufffd", "\ufffd" * 4, "length"),
        (b"a" + BROKEN, "a\ufffd", "a\ufffd", "length"),
        # here it did, byte by byte
        (WHOLE + b"b", "\ufffd", "\ufffd", "stop"),
        (b"a" + WHOLE + b"b", "\ufffd", "a\ufffd", "stop"),
        (BROKEN + WHOLE + b"b", "\ufffd", "\ufffd\ufffd", "stop"),
        # a character that two tokens make together
        ("éa".encode(), "é", "é", "stop"),
        ("xé".encode(), "é", "xé", "stop"),
        ("ééa".encode(), "éé", "éé", "stop"),
    ],
)
def test_a_stop_string_is_bytes_that_came(bytes_, stop, text, reason, kept):
    model = npllama.load("stories")
    ids = {model.tokenizer.token_bytes(i): i for i in range(300, 2, -1)}
    tokens = [ids[bytes([byte])] for byte in bytes_]
    config = npllama.GenerationConfig(
        stop_strings=(stop,),
        max_new_tokens=len(tokens),
        include_stop_str_in_output=kept,
        prefix_allowed_tokens_fn=lambda row, seen: [tokens[len(seen) - 2]],
    )
    prompt = model.tokenizer.encode("a")[:2]
    found = npllama.generate(model, prompt, config)
    cut = text.removesuffix(stop) if reason == "stop" and not kept else text
    assert (found.text, found.finish_reason) == (cut, reason)
    assert "".join(npllama.stream(model, prompt, config)) == cut


def test_a_stop_string_that_begins_in_the_prompt_does_not_count():
    """As in vLLM; transformers counts it, if it ends in a new token."""
    model = npllama.load("stories")
    for echo in (False, True):
        config = npllama.GenerationConfig(
            max_new_tokens=4, stop_strings=("a time",), echo=echo
        )
        found = npllama.generate(model, "Once upon a", config)
        assert found.finish_reason == "length" and " time" in found.text


def test_the_end_token_is_asked_before_the_callers_rule():
    model, config = npllama.load("stories"), npllama.GenerationConfig(eos_token_id=2)
    helpers = npllama.Helpers(stop=lambda tokens: "long" if len(tokens) > 2 else None)
    rule = partial(reason_to_end, plan_of(model, config, helpers))
    assert [rule([5, 6]), rule([5, 2]), rule([5, 6, 7]), rule([5, 6, 2])] == [
        None,
        "eos",
        "long",
        "eos",
    ]


def test_the_clock_stops_a_text():
    now = iter([10.0, 11.0, 12.5])
    rule = after_seconds(2.0, clock=lambda: next(now))
    assert [rule([1]), rule([1])] == [None, "time"]
