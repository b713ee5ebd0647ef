"""An explanation as plain data: what the page shows, and what a test reads back.

Probabilities, scores and drawn numbers keep all digits; attention weights are whole
numbers of 1/255, and what a layer would have said has six digits.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from npllama.explain.choices import Choice
from npllama.explain.collect import Explanation, Run, Step
from npllama.explain.layers import STEPS, Said, held
from npllama.explain.search import Level
from npllama.generation.options import (
    DEFAULTS,
    OPTIONS,
    SHAPE,
    GenerationConfig,
    check_names,
)
from npllama.generation.task import DEFAULT_NEW_TOKENS
from npllama.text.tokenizer import Tokenizer
from npllama.weights import Model

MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


class Asked(NamedTuple):
    """How a text was asked for, so that it can be asked for again."""

    prompt: str | list[int]
    seed: int
    weights: str = "stories"
    helpers: Mapping[str, str] = {}  # "assistant" or "amateur", and its file
    first: Sequence[int] = ()  # tokens that the new text had to begin with


def shown_token(tokenizer: Tokenizer | None, token: int) -> str:
    """A token for people: its text with white space made visible, or its name."""
    if tokenizer is None:
        return f"#{token}"
    name, content, _ = tokenizer.token(token)
    try:
        text = content.decode("utf-8") or name
    except UnicodeDecodeError:
        text = name  # half a character
    text = "".join(MARKS.get(c, c) for c in text)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text) or "∅"


def told(e: Explanation, asked: Asked) -> dict[str, Any]:
    """All that the page needs, as JSON has it."""
    c = e.model.config
    data: dict[str, Any] = {
        "prompt": asked.prompt,
        "seed": asked.seed,
        "first": list(asked.first),
        "shape": [n for n, option in OPTIONS.items() if option.chapter == SHAPE],
        "options": options_of(e.config),
        "command": command(e.config, asked),
        "says": {name: option.says for name, option in OPTIONS.items()},
        "model": model_of(e.model, asked.weights),
        "tokens": e.tokens,
        "begin": e.begin,
        "text": e.found.text,
        "reason": e.found.finish_reason,
        "score": e.found.score,
        "drawn": e.config.do_sample,
        "steps": [step_of(step) for step in e.steps],
        "runs": [run_of(run) for run in e.runs],
        "levels": [level_of(level) for level in e.levels],
        "way": e.way,
        "rounds": [dict(r._asdict()) for r in e.rounds],
        "position": held(c.num_hidden_layers, c.num_key_value_heads, c.head_dim,
                         e.model.embed.dtype.itemsize, 1),
        "seen": None,
    }  # fmt: skip
    if e.seen is not None:
        weights = base64.b64encode(e.seen.weights.tobytes()).decode("ascii")
        data["seen"] = {"first": e.seen.first, "of": STEPS, "weights": weights}
    ids = ids_in(data)
    tokenizer = e.model.tokenizer
    data["names"] = {i: shown_token(tokenizer, i) for i in sorted(ids)}
    # A byte may have the same text as another token.
    names = {i: tokenizer.piece(i) for i in ids} if tokenizer else {}
    data["bytes"] = sorted(i for i in names if names[i].startswith("<0x"))
    return data


def ids_in(data: Mapping[str, Any]) -> set[int]:
    """Every token that is named anywhere."""
    ids = set(data["tokens"])
    for step in data["steps"]:
        ids |= set(step["tokens"])  # a draft's guess is one of them
        ids |= {token for said in step["said"] for token, _ in said["top"]}
    for level in data["levels"]:
        for beams in level.values():
            ids |= {token for _, token, _ in beams}
    return ids | {token for one in data["rounds"] for token in one["guesses"]}


def model_of(model: Model, name: str) -> dict[str, Any]:
    """Its name and its sizes, under their letters."""
    c = model.config
    return {
        "name": Path(name).stem,
        "L": c.num_hidden_layers,
        "H": c.num_attention_heads,
        "K": c.num_key_value_heads,
        "D": c.head_dim,
        "E": c.hidden_size,
        "F": c.intermediate_size,
        "V": c.vocab_size,
        "dtype": model.embed.dtype.name,
    }


def step_of(step: Step) -> dict[str, Any]:
    """How one token came."""
    choice: Choice = step.choice
    line = choice.line
    return {
        "token": step.token,
        "tokens": choice.tokens,
        "stages": [stage._asdict() for stage in choice.stages],
        "u": choice.u,
        "line": None if line is None else line._asdict(),
        "guess": choice.guess,
        "q": choice.q,
        "p": choice.p,
        "runs": step.runs,
        "said": [said_of(said) for said in step.said],
    }


def said_of(said: Said) -> dict[str, Any]:
    """What a layer would have said, to six digits."""
    top = [[token, six(p)] for token, p in said.top]
    return {"top": top, "rank": said.rank, "prob": six(said.prob)}


def six(x: float) -> float:
    """A number to six digits."""
    return float(f"{x:.6g}")


def run_of(run: Run) -> dict[str, Any]:
    """What a pass cost, product by product."""
    parts = {
        name: [total.flops, sum(total.bytes.values())]
        for name, total in run.of.costs.items()
    }
    return {
        "kind": run.kind,
        "start": run.of.start,
        "new": run.of.new,
        "rows": run.of.rows,
        "flops": sum(flops for flops, _ in parts.values()),
        "bytes": sum(size for _, size in parts.values()),
        "parts": parts,
    }


def level_of(level: Level) -> dict[str, Any]:
    """A step of a search; a score that is not finite has no place in JSON."""
    lists = {"candidates": level.candidates, "ended": level.ended, "going": level.going}
    return {
        name: [list(beam) for beam in beams if math.isfinite(beam[2])]
        for name, beams in lists.items()
    }


#  ---- how to ask again ---------------------------------------------------------

A_FUNCTION = "prefix_allowed_tokens_fn"


def options_of(config: GenerationConfig) -> dict[str, Any]:
    """Options that are not at their defaults, as JSON has them."""
    found = {}
    for name, default in DEFAULTS.items():
        value = getattr(config, name)
        if value != default and name != A_FUNCTION:
            found[name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """A value of an option, as JSON has it."""
    if hasattr(value, "_asdict"):  # a watermark; its functions are not told
        fields = value._asdict().items()
        return {name: plain(one) for name, one in fields if not callable(one)}
    if isinstance(value, Mapping):
        return {
            json.dumps(list(k)) if isinstance(k, tuple) else k: plain(v)
            for k, v in value.items()
        }
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)


def command(config: GenerationConfig, asked: Asked) -> str:
    """The command that writes the same text."""
    words = ["npllama", "generate"]
    if isinstance(asked.prompt, str):
        words.append(asked.prompt)
    else:
        words += ["--tokens", ",".join(map(str, asked.prompt))]
    words += ["--weights", asked.weights, "--seed", str(asked.seed)]
    for name, file in asked.helpers.items():
        words += [f"--{name}", file]
    # The command line has defaults of its own for these.
    named = {"temperature": config.temperature, "do_sample": config.do_sample}
    if config.max_length is None:
        named["max_new_tokens"] = config.max_new_tokens or DEFAULT_NEW_TOKENS
    for name, value in (options_of(config) | named).items():
        words += flags("--" + name.replace("_", "-"), value)
    return shlex.join(words)


def flags(flag: str, value: Any) -> Sequence[str]:
    """An option as words of a command."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if flag in ("--stop-strings", "--allowed-special") and isinstance(value, list):
        return [word for one in value for word in (flag, one)]
    if isinstance(value, str):
        return [flag, value]
    return [flag, json.dumps(value)]


def options_back(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `options_of` has written, for a `GenerationConfig`.

    Raises
    ------
    ValueError, TypeError
        If it has written nothing like that.
    """
    check_names(options)
    if A_FUNCTION in options:
        raise ValueError(f"{A_FUNCTION}: a function cannot be sent")
    found = dict(options)
    if isinstance(bias := found.get("logit_bias"), Mapping):
        found["logit_bias"] = {int(k): float(v) for k, v in bias.items()}
    if isinstance(bias := found.get("sequence_bias"), Mapping):
        found["sequence_bias"] = {tuple(json.loads(k)): v for k, v in bias.items()}
    return found
