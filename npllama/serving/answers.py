r"""The server's answers, in the form of OpenAI's API.

The engine reports a text token by token.  Each of these events becomes a `Part`: what
it adds to one *choice*, a text that the client gets.  A stream sends the parts as
they come; a plain answer is the same parts, joined.  So both say the same.

Log-probabilities are the model's own, before penalties, temperature and truncation,
with one entry for every token that was decided, the end token included.  With
``echo`` the entries of the prompt come first, for programs that score a given text: as
many as the prompt has tokens, the first of them null.  In completions the alternatives
to a token are a JSON object whose keys are texts.  But two tokens may be the same text
(``<0x41>`` and ``A``), or half a character, so every token has a
name of its own (`token_names`).

A stream is of *server-sent events*: lines that begin with ``data:``, with an empty
line after each.  Its end is ``data: [DONE]``, once, also after an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from npllama.decoding.logprobs import TokenLogprob
from npllama.serving.engine import Event
from npllama.serving.fields import Refused
from npllama.serving.offered import Served
from npllama.serving.protocol import Ask
from npllama.text.tokenizer import StreamDecoder

# JSON has no infinity; others write this for a probability of nothing, too.
LEAST = -9999.0
DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": still at work\n\n"  # a comment, which clients pass over
# Why a text ended; whatever is not listed is "length".
WHOLE = {"eos", "stop", "format"}


def finite(logprob: float) -> float:
    """Replace an infinite number by one that JSON can hold."""
    return logprob if math.isfinite(logprob) else LEAST


#  ---- log-probabilities --------------------------------------------------------


class Offsets:
    """Tells where in the text of a choice each token begins."""

    def __init__(self, served: Served, echo: bool):
        tokenizer = served.model.tokenizer
        self.decoder = tokenizer and StreamDecoder(tokenizer, continuing=not echo)
        self.length = 0

    def next(self, token: int) -> int:
        """Return where this token begins, and move on to the next."""
        start = self.length
        self.length += len(self.decoder.push(token)) if self.decoder else 0
        return start


def completion_logprobs(
    served: Served,
    tokens: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    offsets: Offsets,
) -> dict[str, list]:
    """Log-probabilities in the form of completions: four lists of one length."""
    names = served.names
    return {
        "tokens": [names[token] for token in tokens],
        "token_logprobs": [entry and finite(entry.logprob) for entry in entries],
        "top_logprobs": [entry and alternatives(names, entry) for entry in entries],
        "text_offset": [offsets.next(token) for token in tokens],
    }


def alternatives(names: Sequence[str], entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the chosen one, by name."""
    pairs = [*entry.top, (entry.token, entry.logprob)]
    return {names[token]: finite(logprob) for token, logprob in pairs}


def chat_logprobs(served: Served, entry: TokenLogprob) -> dict[str, Any]:
    """The log-probability of a token in the form of chats."""
    top = [token_dict(served, token, logprob) for token, logprob in entry.top]
    return token_dict(served, entry.token, entry.logprob) | {"top_logprobs": top}


def token_dict(served: Served, token: int, logprob: float) -> dict[str, Any]:
    """A token, its bytes, and its log-probability."""
    tokenizer = served.model.tokenizer
    content = tokenizer.token_bytes(token) if tokenizer else b""
    name = served.names[token]
    return {"token": name, "bytes": list(content), "logprob": finite(logprob)}


#  ---- parts --------------------------------------------------------------------


class Part(NamedTuple):
    """What an event adds to a choice."""

    choice: int  # which text that the client gets
    text: str
    logprobs: dict[str, list] | None
    reason: str | None  # why the text ends, in OpenAI's words
    first: bool  # whether the choice begins here
    score: float  # log-probability of its token, if it was noted


@dataclass
class Telling:
    """The state of an answer while the server sends it."""

    served: Served
    ask: Ask
    id: str
    created: int
    offsets: dict[int, Offsets] = field(default_factory=dict)  # by choice
    cached: dict[int, int] = field(default_factory=dict)  # tokens, by prompt
    completion_tokens: int = 0


def parts_of(telling: Telling, number: int, event: Event) -> list[Part]:
    """What an event adds to the answer, if it belongs to the prompt with this number.

    A text without chance is computed once, and returned `n` times.

    Writes
    ------
    Into `telling`.
    """
    ask = telling.ask
    telling.cached[number] = event.cached
    begin = number * max(ask.n, ask.written) + event.choice
    copies = ask.n if ask.written == 1 else 1
    return [part_of(telling, number, event, begin + i) for i in range(copies)]


def part_of(telling: Telling, number: int, event: Event, index: int) -> Part:
    """What an event adds to one choice; writes into `telling`."""
    served, ask, prompt = telling.served, telling.ask, telling.ask.prompts[number]
    first = index not in telling.offsets
    if first:
        telling.offsets[index] = Offsets(served, ask.config.echo)
    before = prompt if first and ask.config.echo else []
    tokens, entries, text = [event.token], [event.logprob], event.text
    if ask.silent:
        tokens, entries, text = [], [], text_of(served, before)
    telling.completion_tokens += len(tokens)
    logprobs = None
    if ask.logprobs and ask.chat:
        logprobs = {"content": [chat_logprobs(served, event.logprob)], "refusal": None}
    elif ask.logprobs:
        told = list(event.prompt_logprobs or []) if before else []
        logprobs = completion_logprobs(
            served, [*before, *tokens], told + entries, telling.offsets[index]
        )
    ended = event.reason in WHOLE and not ask.silent
    reason = event.reason and ("stop" if ended else "length")
    score = event.logprob.logprob if event.logprob else 0.0
    return Part(index, text, logprobs, reason, first, score)


def text_of(served: Served, tokens: Sequence[int]) -> str:
    """The text of a prompt's tokens, as ``echo`` shows it."""
    tokenizer = served.model.tokenizer
    return tokenizer.decode(tokens) if tokenizer else ""


def usage(telling: Telling) -> dict[str, Any]:
    """Count the tokens of prompts and answers."""
    prompt = sum(map(len, telling.ask.prompts))
    new, cached = telling.completion_tokens, sum(telling.cached.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


#  ---- a plain answer -----------------------------------------------------------


def label(telling: Telling, kind: str) -> dict[str, Any]:
    """The fields that every answer, and every piece of one, begins with."""
    return {
        "id": telling.id,
        "object": kind,
        "created": telling.created,
        "model": telling.served.name,
        "system_fingerprint": telling.served.fingerprint,
    }


def whole(telling: Telling, parts: Iterable[Part]) -> dict[str, Any]:
    """All parts as one answer."""
    chat, grown = telling.ask.chat, dict[int, list[Part]]()
    for part in parts:
        grown.setdefault(part.choice, []).append(part)
    choices = []
    for index, some in enumerate(best(telling.ask, grown)):
        text, last = "".join(part.text for part in some), some[-1]
        said: dict[str, Any] = {"text": text}
        if chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        logprobs = joined([part.logprobs for part in some if part.logprobs])
        said |= {"logprobs": logprobs, "finish_reason": last.reason}
        choices.append({"index": index} | said)
    kind = "chat.completion" if chat else "text_completion"
    return label(telling, kind) | {"choices": choices, "usage": usage(telling)}


def best(ask: Ask, grown: Mapping[int, list[Part]]) -> list[list[Part]]:
    """The texts to return, in order; of `best_of` the likeliest of each prompt."""
    texts = [grown[index] for index in sorted(grown)]
    if ask.written <= ask.n:
        return texts
    groups = [texts[i : i + ask.written] for i in range(0, len(texts), ask.written)]
    ranked = (sorted(g, key=lambda ps: -sum(p.score for p in ps)) for g in groups)
    return [text for group in ranked for text in group[: ask.n]]


def joined(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Log-probabilities of all parts, list by list."""
    if not pieces:
        return None
    lists = {k: [] if isinstance(v, list) else v for k, v in pieces[0].items()}
    for piece in pieces:
        for key, values in piece.items():
            if isinstance(values, list):
                lists[key] += values
    return lists


#  ---- a stream -----------------------------------------------------------------


def chunks(telling: Telling, part: Part) -> Iterator[dict[str, Any]]:
    """The pieces of a stream that show a part; none for an empty part."""
    shows = part.text or part.logprobs
    if not telling.ask.chat:
        if shows or part.reason:
            said = {"text": part.text, "logprobs": part.logprobs}
            yield chunk(telling, part, said, part.reason)
        return
    if part.first:
        yield chunk(telling, part, {"delta": {"role": "assistant", "content": ""}})
    if shows:
        said = {"delta": {"content": part.text}, "logprobs": part.logprobs}
        yield chunk(telling, part, said)
    if part.reason:
        yield chunk(telling, part, {"delta": {}}, part.reason)


def chunk(
    telling: Telling, part: Part, said: dict[str, Any], reason: str | None = None
) -> dict[str, Any]:
    """A piece of a stream."""
    kind = "chat.completion.chunk" if telling.ask.chat else "text_completion"
    choice = {"index": part.choice} | said | {"finish_reason": reason}
    spent = {"usage": None} if telling.ask.usage else {}
    return label(telling, kind) | {"choices": [choice]} | spent


def last_chunk(telling: Telling) -> dict[str, Any]:
    """The last piece of a stream: how many tokens it took, and no choice."""
    kind = "chat.completion.chunk" if telling.ask.chat else "text_completion"
    return label(telling, kind) | {"choices": [], "usage": usage(telling)}


def ending(telling: Telling, error: Refused | None = None) -> Iterator[str]:
    """The last pieces of a stream, also after an error."""
    if error is not None:
        yield sse(failure(error))
    elif telling.ask.usage:
        yield sse(last_chunk(telling))
    yield DONE


def sse(data: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {as_json(data)}\n\n"


def as_json(data: Any) -> str:
    """Write JSON in ASCII, since a client's text may hold half a character."""
    return json.dumps(data, allow_nan=False, separators=(",", ":"))


#  ---- errors -------------------------------------------------------------------


def failure(error: Refused) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    told = {"message": str(error), "type": error.kind}
    return {"error": told | {"param": error.param, "code": error.code}}


def broken(error: Exception) -> Refused:
    """The error that a client sees if a text ended with an error."""
    if isinstance(error, (ValueError, TypeError)):  # what was asked cannot be done
        return Refused(str(error))
    message = f"the server failed: {type(error).__name__}"
    return Refused(message, status=500, kind="server_error")


#  ---- models -------------------------------------------------------------------


def model_dict(served: Served) -> dict[str, Any]:
    """A model as ``/v1/models`` lists it."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "npllama",
        "max_model_len": served.longest,
    }
