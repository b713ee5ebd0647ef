"""Text held to a format: what fits can be written, and nothing else."""

import doctest
import gc
import json
import re
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from schemas import Bytes

from npllama.decoding import automaton, engine, regex
from npllama.decoding import guided as guided_text
from npllama.decoding.automaton import (
    ACCEPT,
    START,
    compile_regex,
    enter,
    step,
    utf8_ranges,
)
from npllama.decoding.guided import (
    Guide,
    beginning_with,
    guide_for,
    guided,
    vocabulary_of,
    vocabulary_tree,
)
from npllama.decoding.json_schema import schema_machine
from npllama.decoding.regex import AGREED, parse
from npllama.sampling import NothingLeft

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
        "a^",
        "$a",
        "(^a)",
        "(a$)",
        r"\q",
        "(?=a)",
        "[z-a]",
        "a{9999}",
    ]
    + ["a{1,x}", "a{1,-2}", "a{", "(" * 10_000, "[\x80-\uffff]" * 30_000],
)
def test_a_malformed_pattern_gets_one_line(pattern):
    with pytest.raises(ValueError, match="regex"):
        compile_regex(pattern)


CONTENTS = [b"", b"a", b"b", b"ab", "é".encode()[:1], "é".encode()[1:], b"ba", b"\n"]
VOCABULARY = vocabulary_tree(CONTENTS)
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
            content = b"".join(CONTENTS[t] for t in tokens[1:])
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
    for token, content in enumerate(CONTENTS):
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
    with pytest.raises(NothingLeft, match="no token of the vocabulary") as caught:
        process([[7, 1], [7, 3, 1]], logits)  # somebody went on all the same
    assert caught.value.row == 1  # so the message can name prompt and option


def test_beginning_with_allows_anything_after():
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
    machine = schema_machine(SCHEMA)
    assert accepts(machine, json.dumps(value, ensure_ascii=False).encode()) == fits


@given(st.sets(st.sampled_from("abc")), st.permutations("abc"))
def test_optional_members_come_in_order_with_commas_between(required, order):
    schema = {
        "properties": {name: {"type": "null"} for name in "abc"},
        "required": sorted(required),
    }
    machine = schema_machine(schema)
    for n in range(4):
        chosen = order[:n]
        text = json.dumps(dict.fromkeys(chosen)).encode()
        assert accepts(machine, text) == (
            list(chosen) == sorted(chosen) and required <= set(chosen)
        )


@pytest.mark.parametrize(
    "pattern, strings, others",
    [
        ("^.{2}$", ['é"', "\\\\", "\t😀"], ["a", "abc", "a\n"]),
        ("^a$|^b$", ["a", "b"], ["ab", ""]),
        ("^a|b$", ["a", "ab", "ac", '"b'], ["", "ca", "bc", " a"]),
        ("[bc]", ["b", "abz", "\u20acc"], ["", "a", "B"]),
        (r'^["\\]+$', ['"', '\\"'], ["a", ""]),
        (r"^[^a-c]*$", ["", "xyz/-]^", "\x00\x1f"], ["xa"]),
        (r"^\d{3}-[a-z]$", ["123-x"], ["123-X", "12-x", "123-xy"]),
        (r"\d{3}-[a-z]", ["123-x", "0123-xy"], ["123-X", "12-x"]),
    ],
)
def test_a_pattern_speaks_of_characters_that_json_may_have_to_escape(
    pattern, strings, others
):
    machine = schema_machine({"type": "string", "pattern": pattern})
    for text in (*strings, *others):
        written = json.dumps(text, ensure_ascii=False).encode()
        assert accepts(machine, written) == (text in strings)
        # The standard asks for a match anywhere in the string.
        assert bool(re.search(pattern, text, re.ASCII)) == (text in strings)


def test_an_array_has_no_more_items_than_are_allowed():
    heads = [{"const": n} for n in (1, 2, 3)]
    for schema, texts in (
        ({"prefixItems": heads}, ["[1, 2, 3]"]),
        ({"prefixItems": heads, "maxItems": 2}, ["[1, 2]"]),
        ({"prefixItems": heads, "items": {"const": 4}, "maxItems": 2}, ["[1, 2]"]),
        ({"prefixItems": heads, "maxItems": 0}, ["[]"]),
    ):
        machine = schema_machine({"type": "array", **schema})
        every = ["[]", "[1]", "[1, 2]", "[1, 2, 3]", "[1, 2, 3, 4]"]
        assert [text for text in every if accepts(machine, text.encode())] == texts


def written(schema, values):
    """Those of some values that a schema's machine accepts as they are written."""
    machine = schema_machine(schema)
    texts = [(v, json.dumps(v, ensure_ascii=False)) for v in values]
    return [v for v, text in texts if accepts(machine, text.encode())]


@pytest.mark.parametrize(
    "schema, fits, others",
    [
        # A type beside a list of values is not ignored.
        ({"type": "string", "enum": ["a", None]}, ["a"], [None]),
        ({"type": "integer", "enum": [1, 2.5, "1", True]}, [1], [2.5, "1", True]),
        ({"enum": ["a", "abc"], "maxLength": 2}, ["a"], ["abc"]),
        ({"enum": [1, 2, 3], "exclusiveMinimum": 1, "maximum": 2.5}, [2], [1, 3]),
        ({"type": ["number", "null"], "enum": [None, 1, "x"]}, [None, 1], ["x"]),
        ({"const": 1, "enum": [1.0, 2]}, [1], [2]),
        # One of several, where no value can fit two.
        (
            {"oneOf": [{"type": "integer"}, {"type": ["string", "null"]}]},
            [1, "a", None],
            [1.5, []],
        ),
        ({"oneOf": [{"const": 1}, {"enum": [2, True]}]}, [1, 2, True], [3]),
        (
            {
                "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
                "discriminator": {"propertyName": "kind"},
                "$defs": {
                    kind: {
                        "type": "object",
                        "properties": {"kind": {"const": kind}, "n": {"const": n}},
                        "required": ["kind"],
                    }
                    for n, kind in enumerate(("cat", "dog"))
                },
            },
            [{"kind": "cat", "n": 0}, {"kind": "dog", "n": 1}, {"kind": "dog"}],
            [{"kind": "cat", "n": 1}, {"n": 0}, {"kind": "cow"}],
        ),
        # Lengths count characters: those beyond U+FFFF are one.
        ({"type": "string", "maxLength": 1}, ["", "a", "é", "😀", '"'], ["ab", "😀a"]),
        ({"type": "string", "minLength": 2}, ["😀a", "ab"], ["😀", "a", ""]),
        # Free objects and arrays, and further properties.
        ({"type": "object"}, [{}, {"a": 1}, {"a": [{"b": None}]}], [[], 1]),
        ({"type": "array"}, [[], [1, "a", {}]], [{}, 1]),
        ({}, [1, -2.5e3, "a", None, True, [[]], {"a": {}}], []),
        (True, [1, "a"], []),
        ({"description": "any", "x-note": 1, "readOnly": True}, [1, []], []),
        (
            {"additionalProperties": {"type": "integer"}},
            [{}, {"a": 1, "": 2}],
            [{"a": "b"}, {"a": 1.5}],
        ),
        (
            {
                "properties": {"ab": {"const": 0}, 'a"': {"const": 1}},
                "additionalProperties": {"type": "null"},
            },
            [{"ab": 0, 'a"': 1, "a": None, "abc": None, "": None, "b": None}, {}],
            [{"ab": None}, {'a"': None}, {"abc": 1}],
        ),
        ({"properties": {"a": {}}, "additionalProperties": True}, [{"b": 1}], []),
        ({"properties": {"a": {}}}, [{"a": 1}], [{"b": 1}]),
        (
            {
                "type": "object",
                "propertyNames": {"enum": ["a", "b"]},
                "additionalProperties": {"const": 1},
            },
            [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
            [{"c": 1}, {"a": 2}],
        ),
        *(
            ({"propertyNames": names, "additionalProperties": {"const": 1}}, fit, not_)
            for names, fit, not_ in (
                ({"pattern": "^[a-z]+$"}, [{}, {"ab": 1}], [{"A": 1}, {"a": 2}]),
                ({"minLength": 2, "maxLength": 2}, [{"😀a": 1}], [{"a": 1}]),
                ({"format": "date"}, [{"2024-02-29": 1}], [{"2023-02-29": 1}]),
                (
                    {"$ref": "#/propertyNames/x-a", "x-a": {"const": "a"}},
                    [{"a": 1}],
                    [{"b": 1}],
                ),
                (
                    {"enum": ["a", 1], "type": ["string", "null"]},
                    [{"a": 1}],
                    [{"1": 1}],
                ),
                (True, [{"a": 1, "": 1}], [{"a": 2}]),
            )
        ),
        # Arrays.
        ({"type": "array", "items": False}, [[]], [[1]]),
        ({"prefixItems": [{"const": 1}], "items": False}, [[1]], [[], [1, 1]]),
        (
            {"prefixItems": [{"const": 1}, {"const": 2}], "minItems": 1},
            [[1], [1, 2]],
            [[], [2], [1, 2, 3]],
        ),
        (
            {"items": {"const": 1}, "minItems": 2, "maxItems": 3},
            [[1, 1], [1, 1, 1]],
            [[], [1], [1, 1, 1, 1], [2, 1]],
        ),
        # One allOf, references of every kind, and recursion.
        ({"allOf": [{"type": "null"}], "title": "x"}, [None], [1]),
        (
            {"items": {"$ref": "#/prefixItems/0"}, "prefixItems": [{"const": 1}]},
            [[1, 1]],
            [[1, 2]],
        ),
        ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"const": 3}}}, [3], [4]),
        (
            {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]},
            [None, [], [None, [[], [[None]]]]],
            [1, [1], [[[1]]]],
        ),
        (
            {"properties": {"v": {"const": 1}, "next": {"$ref": "#"}}},
            [{}, {"v": 1}, {"v": 1, "next": {"next": {"v": 1}}}],
            [{"next": 1}, {"next": {"v": 2}}],
        ),
        # A way that never ends is closed, the others stay.
        (
            {
                "anyOf": [{"const": 1}, {"$ref": "#/$defs/x"}],
                "$defs": {
                    "x": {"properties": {"y": {"$ref": "#/$defs/x"}}, "required": ["y"]}
                },
            },
            [1],
            [{"y": 1}],
        ),
        # Formats.
        (
            {"type": "string", "format": "date"},
            ["2024-02-29", "1999-12-31", "2000-02-29"],
            ["2023-02-29", "1900-02-29", "0000-01-01", "2024-04-31", "2024-1-1"],
        ),
        (
            {"type": "string", "format": "date-time"},
            ["2024-02-29T23:59:59Z", "2024-01-01T00:00:00.125+05:30"],
            ["2024-02-30T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01"],
        ),
        (
            {"type": "string", "format": "uuid"},
            ["123e4567-e89b-12d3-a456-426614174000"],
            [
                "123e4567e89b12d3a456426614174000",
                "123e4567-e89b-12d3-a456-42661417400g",
            ],
        ),
        (
            {"type": "string", "format": "uuid4"},
            ["123e4567-e89b-42d3-a456-426614174000"],
            ["123e4567-e89b-12d3-a456-426614174000"],
        ),
        ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.0.0.1", "1.2.3"]),
        ({"type": "string", "format": "duration"}, ["P1DT2H", "PT0S"], ["P", "1D"]),
        ({"type": "string", "format": "password"}, ["", "x y"], [1]),
        # Spaces beyond ASCII are spaces, and none of them is a word.
        *(
            ({"type": "string", "pattern": pattern}, fits, ["\xa0", "\u3000", "\u2028"])
            for pattern, fits in (
                (r"^\S+$", ["a", "é-"]),
                (r"^[^@\s]+$", ["a", "é-"]),
                (r"^[^\s]$", ["a"]),
                (r"^\w+$", ["a"]),
                (r"^[\w.]+$", ["a.b"]),
                (r"^[^\W]+$", ["ab"]),
            )
        ),
    ],
)
def test_what_a_schema_says_is_what_can_be_written(schema, fits, others):
    assert written(schema, [*fits, *others]) == fits


def test_half_a_character_is_not_a_character():
    machine = schema_machine({"type": "string", "maxLength": 1})
    for text, fits in (
        (r"\ud83d\ude00", True),
        (r"\uD83D\uDE00", True),
        (r"\u00e9", True),
        (r"\ud83d", False),
        (r"\ude00", False),
        (r"\ud83d\u0041", False),
        (r"\ud83d\ud83d", False),
        (r"a\u0041", False),
    ):
        assert accepts(machine, f'"{text}"'.encode()) == fits


NUMBERS = st.one_of(
    st.integers(-1200, 1200),
    st.decimals(-20, 20, places=2).map(float),
    st.sampled_from([0, 1e-9, -1e-9, 0.1, 1e14, 999.5, -0.001, 10, 100]),
)


@given(
    NUMBERS,
    NUMBERS,
    st.integers(0, 3),
    st.integers(0, 6),
    st.sampled_from([0, 0, 1, -1, 0.01, -0.01, 1e-6, 9]),
)
@example(2, 7, 0, 0, 0)
@example(2, 7, 1, 0, 0)
@example(2, 7, 2, 1, 0)
@example(2, 7, 0, 1, 0)
@example(-7, -2, 3, 1, 0)
@example(-7, 0.5, 3, 0, 0)
def test_bounds_are_kept_exactly(a, b, open_, place, step):
    low, high = sorted((a, b))
    names = ["exclusiveMinimum" if open_ & 1 else "minimum"]
    names.append("exclusiveMaximum" if open_ & 2 else "maximum")
    near = [low, high, 0, -low, (low + high) / 2, low * 10, high / 10]
    value = near[place] + step
    for kind in ("integer", "number"):
        value = int(value) if kind == "integer" else float(f"{value:.6g}")
        fits = low < value if open_ & 1 else low <= value
        fits = fits and (value < high if open_ & 2 else value <= high)
        text = np.format_float_positional(value, trim="-") if value else "0"
        for schema in ({names[0]: low, names[1]: high}, {names[0]: low}):
            if names[1] not in schema:
                fits = low < value if open_ & 1 else low <= value
            try:
                machine = schema_machine({"type": kind, **schema})
            except ValueError as error:
                assert "lies between" in str(error)
                assert not fits
                continue
            assert accepts(machine, text.encode()) == fits
            if kind == "number" and "." in text:
                assert accepts(machine, (text + "0").encode()) == fits
            assert not accepts(machine, b"0" + text.encode().lstrip(b"-"))


@pytest.mark.parametrize("pattern", [r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", "."])
def test_classes_take_what_javascript_and_python_agree_on(pattern):
    # ECMAScript's own classes, as its specification lists them.
    spaces = "\t\n\v\f\r \xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    spaces += "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
    ascii_word = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
    ecma = {"w": ascii_word, "d": "0123456789", "s": spaces, ".": "\n\r\u2028\u2029"}
    members = set(ecma[pattern[-1].lower()])
    negated = pattern[-1].isupper() or pattern == "."
    [node] = parse(pattern, AGREED)[1]
    outside = parse(f"[^{pattern}]", AGREED)[1][0][1] if pattern != "." else []
    for code in [*range(0x3100), 0xFEFF, 0xFF11, 0x10400, 0x1D7D8, 0x10FFFF]:
        sign = chr(code)
        for_both = ((sign in members) != negated) and bool(re.fullmatch(pattern, sign))
        assert any(a <= code <= b for a, b in node[1]) == for_both
        if outside:
            neither = (sign in members) == negated and not re.fullmatch(pattern, sign)
            assert any(a <= code <= b for a, b in outside) == neither


def fields(child, n=30):
    return {"type": "object", "properties": {f"field_{i}": child for i in range(n)}}


@pytest.mark.parametrize("by_reference", [False, True])
def test_optional_fields_cost_their_sum(by_reference):
    sizes = []
    for n in (10, 30):
        leaf, middle = fields({"type": "integer"}, n), fields({"$ref": "#/$defs/a"}, n)
        schema = fields({"$ref": "#/$defs/b"}, n) | {"$defs": {"a": leaf, "b": middle}}
        if not by_reference:
            schema = fields(fields(leaf, n), n)
        tracemalloc.start()
        sizes.append(len(schema_machine(json.dumps(schema)).steps))
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert memory < 200e6
    assert sizes[1] < 3.2 * sizes[0] < 20_000


def test_a_chain_of_objects_costs_its_sum():
    sizes = []
    for depth in (4, 8):
        schema = fields({"type": "string"}, 5)
        for level in range(depth):
            named = {f"{level}_{i}": {"type": "boolean"} for i in range(5)}
            schema = {"type": "object", "properties": named | {"child": schema}}
            schema = {"type": "array", "items": schema, "minItems": 2}
        sizes.append(len(schema_machine(schema).steps))
    assert sizes[1] < 2.2 * sizes[0]


@pytest.mark.parametrize("module", [regex, automaton, guided_text, engine])
def test_numbers_in_the_docstrings_are_true(module):
    result = doctest.testmod(module)
    assert not result.failed and (result.attempted or module is engine)


@pytest.mark.parametrize("pattern", ["^ab*$", "^ab*", "ab*$", "^ab*$|^c$", "ab*$|c"])
def test_anchors_at_the_ends_say_what_holds_anyway(pattern):
    machine = compile_regex(pattern)
    for text in ("", "a", "abb", "c", "ac", "^a", "a$"):
        expected = re.fullmatch(pattern, text) is not None
        assert accepts(machine, text.encode()) == expected


#  ---- one tree for all -------------------------------------------------------


def test_a_tokenizer_s_tree_is_made_once_and_goes_with_it():
    tokenizer = Bytes()
    tree = vocabulary_of(tokenizer)
    assert vocabulary_of(tokenizer) is tree
    guides = [guide_for(tokenizer, compile_regex("a"), [261]) for _ in range(3)]
    assert all(guide.vocabulary is tree for guide in guides)
    seen, key = weakref.ref(tokenizer), id(tokenizer)
    del tokenizer, tree, guides
    gc.collect()
    assert seen() is None and key not in guided_text._VOCABULARIES


@given(st.lists(st.binary(max_size=3), max_size=12))
def test_the_tree_holds_every_token(contents):
    tree = vocabulary_tree(contents)
    for content, node in zip(contents, tree.nodes):
        read, rows = b"", list(tree.rows)
        passed = np.cumsum([0] + [len(parents) for parents, _ in rows])
        row = int(np.searchsorted(passed, node, side="right")) - 1
        at = int(node - passed[row]) if node >= 0 else 0
        for depth in range(row, -1, -1) if node >= 0 else ():
            read = bytes([rows[depth][1][at]]) + read
            at = int(rows[depth][0][at])
        assert read == content and (node == -1) == (content == b"")
    assert tree.nodes.shape == (len(contents),)


def test_a_vocabulary_of_128_thousand_tokens_takes_little_memory():
    contents = [b" %x" % (i * i) for i in range(2**17)]
    tracemalloc.start()
    guide = Guide(compile_regex("( [0-9]+)+"), vocabulary_tree(contents))
    allowed = guide.look([]).allowed
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20e6 and peak < 60e6
    assert allowed.tolist() == [content[1:].isdigit() for content in contents]


def test_texts_are_read_from_what_is_known_of_them():
    guide = Guide(compile_regex("(ab)*"), VOCABULARY, [EOS])
    rng = np.random.default_rng(0)
    for _ in range(600):  # more than are kept
        tokens = rng.integers(1, 4, rng.integers(0, 5)).tolist()
        text = b"".join(CONTENTS[token] for token in tokens)
        assert bool(guide.after(tokens)) == bool(re.fullmatch(b"(ab)*a?", text))
    assert len(guide.texts) <= guided_text.MOST_TEXTS


#  ---- what goes beyond -------------------------------------------------------


def test_a_refusal_names_the_extra(monkeypatch):
    monkeypatch.setattr(engine, "installed", lambda: False)
    unique = {"type": "array", "uniqueItems": True}
    with pytest.raises(ValueError, match=r"'uniqueItems'.*npllama\[guide\]"):
        engine.compile_schema(unique)
    with pytest.raises(ValueError, match=r"npllama\[guide\]"):
        engine.compile_grammar("start: /a/")
    # What is no schema at all is no matter of the extra.
    with pytest.raises(ValueError, match="cannot be 3$"):
        engine.compile_schema({"type": 3})
    compiled = engine.compile_schema({"type": "null"})
    assert isinstance(engine.guide_of(Bytes(), compiled), Guide)


def nested(depth):
    schema = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema, message",
    [
        ({"type": "integer", "multipleOf": 3}, "'multipleOf' is not understood"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' is not understood"),
        ({"not": {"type": "string"}}, "'not' is not understood"),
        ({"if": {}, "then": {"type": "string"}}, "'if' is not understood"),
        ({"type": "string", "format": "uri"}, "format 'uri' is not understood"),
        ({"allOf": [{"type": "null"}, {"const": None}]}, "'allOf' of several"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf'"),
        ({"oneOf": [{"type": "object", "properties": {}}] * 2}, "'oneOf'"),
        ({"$ref": "http://x/y"}, "points outside"),
        ({"$ref": "#/$defs/x"}, "leads nowhere"),
        ({"$ref": "#"}, "contains itself"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer lies between"),
        ({"type": "integer", "minimum": "3"}, "'minimum' cannot be '3'"),
        ({"type": "string", "const": 1}, "'type' beside 'const' leaves no value"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "endless"),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}},
            "contains itself",
        ),
        ({"type": "thing"}, "not one of"),
        ({"minimum": 3, "maxLength": 2}, "no 'type'"),
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
        *(
            ({"type": "object", "propertyNames": names}, "'propertyNames' other than")
            for names in (
                {"enum": ["a"], "type": "integer"},
                {"enum": ["a"], "minLength": 2},
                {"const": "a", "enum": ["b"]},
                {"not": {"const": "a"}},
                {"enum": ["a"], "not": {"const": "a"}},
                False,
            )
        ),
        (
            {"properties": {"ab": {}}, "propertyNames": {"pattern": "a"}},
            "'propertyNames' beside 'properties'",
        ),
        # The message names the place.
        (
            {"properties": {"a b": {"items": {"properties": {"c": {"not": {}}}}}}},
            "'not' is not understood, in 'c', in 'a b'$",
        ),
        ({"properties": {"a": {"type": 3}}}, "'type' cannot be 3, in 'a'$"),
        ({"properties": {"a": {"pattern": "("}}}, "not closed at 1, in 'a'$"),
        (nested(400), "nested too deeply"),
    ],
)
def test_what_a_pattern_cannot_say_is_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        schema_machine(schema)
