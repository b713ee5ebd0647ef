"""Text held to a format: what fits can be written, and nothing else."""

import json
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from npllama.decoding.automaton import (
    ACCEPT,
    START,
    compile_regex,
    enter,
    step,
    utf8_ranges,
)
from npllama.decoding.guided import Guide, beginning_with, guided
from npllama.decoding.json_schema import schema_to_regex

LETTERS = "abé"


def accepts(machine, content):
    states = enter(machine, frozenset([START]))
    for byte in content:
        states = step(machine, states, byte)
        if not states:
            return False
    return ACCEPT in states


LEAVES = st.sampled_from(["a", "b", "é", ".", "[ab]", "[^a]", "[a-é]", r"\w", "(?:)"])
REGEXES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)


@given(REGEXES, st.text(LETTERS + "\n", max_size=6))
@example("[]a-]+", "]a-")
@example("a{0}", "")
def test_the_machine_accepts_what_python_matches(pattern, text):
    expected = re.fullmatch(pattern, text, re.ASCII) is not None
    assert accepts(compile_regex(pattern), text.encode()) == expected


@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_a_range_of_characters_is_exactly_its_bytes(a, b, c):
    low, high = sorted((a, b))
    if 0xD800 <= c <= 0xDFFF:
        return
    content = chr(c).encode()
    fits = any(
        len(chain) == len(content)
        and all(x <= byte <= y for byte, (x, y) in zip(content, chain))
        for chain in utf8_ranges(low, high)
    )
    assert fits == (low <= c <= high)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a**",
        "a*+",
        "a{1}{2}",
        "[",
        "*",
        "a{2,1}",
        "^a",
        r"\q",
        "(?=a)",
        "[z-a]",
        "a{9999}",
    ]
    + ["a{1,x}", "a{1,-2}", "a{", "(" * 10_000, "(a{1000}){1000}"],
)
def test_a_malformed_pattern_gets_one_line(pattern):
    with pytest.raises(ValueError, match="regex"):
        compile_regex(pattern)


VOCABULARY = [b"", b"a", b"b", b"ab", "é".encode()[:1], "é".encode()[1:], b"ba", b"\n"]
EOS = 0


@given(REGEXES, st.integers(0, 1000))
def test_whatever_is_chosen_under_the_mask_matches_in_the_end(pattern, seed):
    guide = Guide(compile_regex(pattern), VOCABULARY, [EOS])
    rng = np.random.default_rng(seed)
    process = guided(guide, [1])
    tokens = [7]
    for _ in range(12):
        logits = np.zeros((1, 8), dtype=np.float32)
        masked = process([tokens], logits)[0]
        allowed = np.flatnonzero(masked > -np.inf)
        token = int(rng.choice(allowed))
        if token == EOS:
            content = b"".join(VOCABULARY[t] for t in tokens[1:])
            assert re.fullmatch(pattern, content.decode(), re.ASCII)
            return
        tokens.append(token)
    assert guide.after(tokens[1:])


@given(REGEXES)
def test_the_mask_is_what_trying_every_token_says(pattern):
    guide = Guide(compile_regex(pattern), VOCABULARY, [EOS])
    states = guide.after([1])
    if not states:
        return
    mask = guide.allowed(states)
    for token, content in enumerate(VOCABULARY):
        if token == EOS:
            assert mask[token] == (ACCEPT in states)
        else:
            ahead = states
            for byte in content:
                ahead = step(guide.machine, ahead, byte)
            assert mask[token] == bool(ahead)


def test_masked_logits_are_the_model_s_where_they_are_left():
    guide = Guide(compile_regex("ab"), VOCABULARY, [EOS])
    logits = np.arange(8, dtype=np.float32)[None]
    masked = guided(guide, [0])([[]], logits)
    assert masked.tolist() == [[-np.inf, 1, -np.inf, 3] + [-np.inf] * 4]
    assert logits[0, 0] == 0


def test_row_whose_text_is_whole_waits_for_the_others():
    process = guided(Guide(compile_regex("ab"), VOCABULARY), [1])
    logits = np.arange(16, dtype=np.float32).reshape(2, 8)
    whole, going = process([[7, 3], [7, 1]], logits)
    assert whole.tolist() == logits[0].tolist()
    assert np.flatnonzero(going > -np.inf).tolist() == [2]
    with pytest.raises(ValueError, match="no token of the vocabulary can go on"):
        process([[7, 3, 1], [7, 1]], logits)  # somebody went on all the same


def test_beginning_with_allows_anything_behind():
    machine = beginning_with(b"ab")
    assert accepts(machine, b"ab") and accepts(machine, b"ab\xff\x00")
    assert not accepts(machine, b"a") and not accepts(machine, b"ba")


#  ---- schemas ----------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer"},
        "tags": {
            "type": "array",
            "items": {"enum": ["a.b", "c|d", 1, None]},
            "maxItems": 3,
        },
        "kind": {"$ref": "#/$defs/kind"},
    },
    "required": ["age"],
    "$defs": {"kind": {"anyOf": [{"const": True}, {"type": ["number", "null"]}]}},
}


@pytest.mark.parametrize(
    "value, fits",
    [
        ({"age": 3}, True),
        ({"name": "Bob", "age": -30}, True),
        ({"name": "", "age": 3}, False),
        ({"name": "Bobbie", "age": 3}, False),
        ({"name": 'é\n"', "age": 0, "kind": 1.5e-3}, True),
        ({"age": 3, "tags": ["a.b", 1, None], "kind": True}, True),
        ({"age": 3, "tags": ["axb"]}, False),
        ({"age": 3, "tags": [1, 1, 1, 1]}, False),
        ({"age": 3, "tags": []}, True),
        ({"age": "3"}, False),
        ({"name": "Bob"}, False),
        ({"age": 3, "more": 1}, False),
        ({"age": 3, "kind": False}, False),
    ],
)
def test_a_schema_admits_what_it_describes(value, fits):
    machine = compile_regex(schema_to_regex(SCHEMA))
    assert accepts(machine, json.dumps(value, ensure_ascii=False).encode()) == fits


@given(st.sets(st.sampled_from("abc")), st.permutations("abc"))
def test_optional_members_come_in_order_with_commas_between(required, order):
    schema = {
        "properties": {name: {"type": "null"} for name in "abc"},
        "required": sorted(required),
    }
    machine = compile_regex(schema_to_regex(schema))
    for n in range(4):
        chosen = order[:n]
        text = json.dumps(dict.fromkeys(chosen)).encode()
        assert accepts(machine, text) == (
            list(chosen) == sorted(chosen) and required <= set(chosen)
        )


@pytest.mark.parametrize(
    "pattern, strings, others",
    [
        (".{2}", ['é"', "\\\\", "\t😀"], ["a", "abc", "a\n"]),
        ("a|b", ["a", "b"], ["ab", ""]),
        (r'^["\\]+$', ['"', '\\"'], ["a", ""]),
        (r"[^a-c]*", ["", "xyz/-]^", "\x00\x1f"], ["xa"]),
        (r"\d{3}-[a-z]", ["123-x"], ["123-X", "12-x"]),
    ],
)
def test_a_pattern_speaks_of_characters_that_json_may_have_to_escape(
    pattern, strings, others
):
    machine = compile_regex(schema_to_regex({"type": "string", "pattern": pattern}))
    for text in (*strings, *others):
        written = json.dumps(text, ensure_ascii=False).encode()
        assert accepts(machine, written) == (text in strings)
        assert bool(re.fullmatch(pattern, text, re.ASCII)) == (text in strings)


def test_an_array_has_no_more_items_than_are_allowed():
    heads = [{"const": n} for n in (1, 2, 3)]
    for schema, texts in (
        ({"prefixItems": heads}, ["[1, 2, 3]"]),
        ({"prefixItems": heads, "maxItems": 2}, ["[1, 2]"]),
        ({"prefixItems": heads, "items": {"const": 4}, "maxItems": 2}, ["[1, 2]"]),
        ({"prefixItems": heads, "maxItems": 0}, ["[]"]),
    ):
        machine = compile_regex(schema_to_regex({"type": "array", **schema}))
        every = ["[]", "[1]", "[1, 2]", "[1, 2, 3]", "[1, 2, 3, 4]"]
        assert [text for text in every if accepts(machine, text.encode())] == texts


def nested(depth):
    schema = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "integer", "minimum": 3}, "'minimum' is not understood"),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}},
            "contains itself",
        ),
        ({"type": "thing"}, "not one of"),
        ({}, "no 'type'"),
        ("{", "not JSON"),
        ({"properties": {}, "required": ["a"]}, "not declared"),
        ({"enum": []}, "without options"),
        ({"type": 3}, "'type' cannot be 3"),
        ({"properties": [1]}, "'properties' cannot be"),
        ({"type": "string", "maxLength": -1}, "'maxLength' cannot be -1"),
        ({"type": "string", "minLength": True}, "'minLength' cannot be True"),
        ({"type": "array", "items": {"const": 1}, "minItems": "2"}, "cannot be '2'"),
        ({"$ref": 3}, "cannot be 3"),
        ("[" * 100_000, "not JSON"),
        ({"enum": ["abcd"], "minLength": 9}, "'minLength' beside 'enum'"),
        ({"$ref": "#/$defs/x", "minimum": 3}, "'minimum' beside '\\$ref'"),
        ({"const": 1, "enum": [2]}, "'const' is not among 'enum'"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "beside 'pattern'"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "maxLength is below"),
        ({"type": "array", "items": {}, "minItems": 2, "maxItems": 1}, "is below"),
        ({"properties": {}, "required": [{}]}, "'required' cannot be"),
        ({"const": float("nan")}, "is not JSON"),
        (nested(400), "nested too deeply"),
    ],
)
def test_what_a_pattern_cannot_say_is_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        schema_to_regex(schema)
