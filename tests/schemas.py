"""Random JSON schemas of the kinds that pydantic writes, and random texts under them."""

import json

import numpy as np

NAMES = ["name", "a", "b c", "naïve", 'quo"te', "$x", "value", "items", "kind", "n"]
PATTERNS = [r"^\S+$", r"^[^@\s]+@\w+\.\w+$", r"^\W$", "b", r"^\d{3}-[a-z]$", r"^[A-Z]"]
PATTERNS += [r"[^\w]", r"^.{2}$", r"^(a|é)*$", r"\s", r"^\D$", r"a$|^b"]
FORMATS = ["date", "time", "date-time", "duration", "uuid", "ipv4", "email", "password"]


class Bytes:
    """A tokenizer whose tokens are the bytes, a few pairs of them, and an end token."""

    vocab_size, eos = 262, 261

    def token_bytes(self, index):
        return (
            bytes([index])
            if index < 256
            else [b'", ', b"}", b'{"', b"1.", b"\\u", b""][index - 256]
        )


def bounds(rng, whole):
    """Two bounds at most, often close to each other, to powers of ten, and to zero."""
    scale = 10.0 ** rng.integers(-3, 7)
    low = rng.normal() * scale * rng.integers(0, 2)
    high = low + abs(rng.normal()) * scale + (1 if whole else 0)
    low, high = (round(float(x), int(rng.integers(0, 4))) for x in (low, high))
    if whole and rng.random() < 0.8:
        low, high = int(np.floor(low)), int(np.ceil(high)) + 2
    found = {}
    if rng.random() < 0.7:
        found[rng.choice(["minimum", "exclusiveMinimum"])] = low
    if rng.random() < 0.7:
        found[rng.choice(["maximum", "exclusiveMaximum"])] = high + (high == low)
    return {str(key): value for key, value in found.items()}


def string(rng):
    kind = rng.integers(0, 4)
    if kind == 0:
        return {"type": "string", "pattern": str(rng.choice(PATTERNS))}
    if kind == 1:
        return {"type": "string", "format": str(rng.choice(FORMATS))}
    low = int(rng.integers(0, 3))
    lengths = {"minLength": low, "maxLength": low + int(rng.integers(0, 3))}
    return {"type": "string", **(lengths if kind == 2 else {})}


def choice(rng, depth):
    """Enumerations, literals with siblings, unions."""
    values = [1, "a", None, True, 2.5, "é\n", "naïve", 0, False, 1.0]
    some = [values[i] for i in rng.permutation(10)[: rng.integers(1, 4)]]
    kind = rng.integers(0, 5)
    if kind == 0:
        return {"enum": some}
    if kind == 1:
        types = ["string", "null", "integer", "number", "boolean"]
        return {"enum": some, "type": [types[i] for i in rng.permutation(5)[:3]]}
    if kind == 2:
        return {"const": some[0], "title": "T"}
    word = "anyOf" if kind == 3 else "oneOf"
    return {word: [schema(rng, depth - 1) for _ in range(rng.integers(1, 4))]}


def array(rng, depth):
    kind = rng.integers(0, 4)
    low = int(rng.integers(0, 3))
    counts = {"minItems": low, "maxItems": low + int(rng.integers(0, 3))}
    counts = {word: counts[word] for word in counts if rng.random() < 0.6}
    if kind == 0:
        return {"type": "array", **counts}
    if kind == 1:
        heads = [schema(rng, depth - 1) for _ in range(rng.integers(1, 4))]
        n = len(heads)
        found = {"type": "array", "prefixItems": heads}
        if rng.random() < 0.5:
            return found | {"minItems": n, "maxItems": n}
        rest = [False, schema(rng, depth - 1), True][rng.integers(0, 3)]
        return found | {"items": rest, "minItems": int(rng.integers(0, n + 1))}
    return {"type": "array", "items": schema(rng, depth - 1), **counts}


def model(rng, depth):
    n = int(rng.integers(0, 5))
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:n]]
    found = {
        "type": "object",
        "title": "Model",
        "properties": {name: schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
    }
    more = rng.integers(0, 5)
    if more < 3:
        found["additionalProperties"] = [False, True, schema(rng, depth - 1)][more]
    return found


def schema(rng, depth=3):
    """A random schema, nested so deep at most."""
    leaves = [
        lambda: {"type": "integer", **bounds(rng, True)},
        lambda: {"type": "number", **bounds(rng, False)},
        lambda: string(rng),
        lambda: {"type": str(rng.choice(["boolean", "null", "integer", "number"]))},
        lambda: {"$ref": "#/$defs/" + str(rng.choice(["Leaf", "Node"]))},
    ]
    nested = [
        lambda: choice(rng, depth),
        lambda: array(rng, depth),
        lambda: model(rng, depth),
        lambda: model(rng, depth),
        lambda: {"type": "object", "additionalProperties": schema(rng, depth - 1)},
        lambda: [{}, {"type": "object"}, {"description": "any", "x-note": 1}][
            rng.integers(0, 3)
        ],
        lambda: {"allOf": [schema(rng, depth - 1)], "default": None},
    ]
    kinds = leaves if depth <= 0 or rng.random() < 0.4 else nested
    return kinds[rng.integers(0, len(kinds))]()


def root(rng):
    """A whole schema with definitions, one of which contains itself."""
    leaf, value = (schema(rng, 0) for _ in range(2))
    while "$ref" in leaf or "$ref" in value:
        leaf, value = (schema(rng, 0) for _ in range(2))
    node = {
        "type": "object",
        "properties": {
            "value": value,
            "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        },
        "required": ["value"],
    }
    return {**model(rng, 3), "$defs": {"Leaf": leaf, "Node": node}}


CLOSING = frozenset(b'"}],0') | {257}


def text_under(guide, rng, longest=3000):
    """A random text that a guide allows, as bytes, or None if it grows too long."""
    tokens = []
    hurry = rng.uniform(0.3, 0.9)
    while len(tokens) < longest:
        allowed, whole = guide.look(tokens)
        able = np.flatnonzero(allowed)
        assert whole or len(able), "the text can neither end nor go on"
        if whole and (rng.random() < 0.5 or set(able) <= {Bytes.eos}):
            return b"".join(map(Bytes().token_bytes, tokens))
        able = able[able != Bytes.eos]
        closing = [token for token in able if int(token) in CLOSING]
        pool = closing if closing and rng.random() < hurry else able
        tokens.append(int(rng.choice(pool)))
        hurry = max(hurry, len(tokens) / 200)
    return None


def fits(validator, text):
    """Why a text does not fit a schema; None if it does."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    errors = [error.message for error in validator.iter_errors(value)]
    return errors[0] if errors else None
