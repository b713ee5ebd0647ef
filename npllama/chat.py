r"""How a conversation becomes one text.

A model continues text; a chat model was trained on texts that are conversations,
written in one exact form.  In another form it still answers, but worse.  There are
two such forms, built here as Meta's own code builds them:

- ``llama-2``: each question stands between ``[INST]`` and ``[/INST]``, the answer
  behind it, and every such pair is a sequence of its own, from BOS to EOS.  System
  instructions go, between ``<<SYS>>`` marks, into the first question.
- ``llama-3``: every message has a header that names its author, and ends with
  ``<|eot_id|>``; these marks are special tokens, not text.

A message is data.  Were a user's ``<|eot_id|>`` or ``[/INST]`` taken for the mark,
he could put words into the assistant's mouth.  In ``llama-3`` such strings are
encoded as plain text; in ``llama-2``, whose marks *are* text, they are refused, as
Meta does.

``plain`` is for base models, which know of no conversation: the message itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from npllama.tokenizer import Tokenizer

FORMATS = ("llama-2", "llama-3", "plain")
ROLES = ("system", "user", "assistant")
LLAMA2_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

Message = Mapping[str, str]


def chat_tokens(
    tokenizer: Tokenizer, dialog: Sequence[Message], format: str
) -> list[int]:
    """Tokens of a conversation, up to where the assistant's next answer begins.

    Parameters
    ----------
    dialog : sequence of {"role": ..., "content": ...}
        An optional "system" message, then "user" and "assistant" in turn, the last
        one the user's.
    format : "llama-2", "llama-3" or "plain"

    Raises
    ------
    ValueError
        If the roles are in another order, or a message holds marks of the format.

    References
    ----------
    Meta llama/generation.py `chat_completion`; llama3/tokenizer.py `ChatFormat`.
    """
    system, turns = check_dialog(dialog)
    tokens: list[int] = []
    for i in range(0, len(turns), 2):
        question = turns[i]["content"]
        first = i == 0
        answer = turns[i + 1]["content"] if i + 1 < len(turns) else None
        system_here = system if first else None
        tokens += turn_tokens(tokenizer, question, format, first, system_here, answer)
    return tokens


def check_dialog(dialog: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The system message, and the turns; ValueError if the order is wrong."""
    for message in dialog:
        if message.get("role") not in ROLES or not isinstance(
            message.get("content"), str
        ):
            raise ValueError(f"dialog: {message!r} is no message; roles are {ROLES}")
    begins = bool(dialog) and dialog[0]["role"] == "system"
    system, turns = (dialog[0]["content"], dialog[1:]) if begins else (None, dialog)
    roles = [message["role"] for message in turns]
    if not roles or roles != [ROLES[1 + i % 2] for i in range(len(roles))]:
        raise ValueError(
            "dialog: user and assistant must speak in turn, the user first"
        )
    if roles[-1] != "user":
        raise ValueError("dialog: the last message must be the user's")
    return system, turns


def turn_tokens(
    tokenizer: Tokenizer,
    message: str,
    format: str,
    first: bool,
    system: str | None = None,
    answer: str | None = None,
) -> list[int]:
    """Tokens of one turn: the user's message, and the answer if it is known.

    A chat that keeps its cache appends, turn by turn, the message's tokens and the
    tokens that the model answered with (`closing` included).

    Parameters
    ----------
    first : bool
        Whether the conversation begins here.
    system : str
        Instructions; belong to the first turn.
    """
    if format == "llama-2":
        return llama2_turn(tokenizer, message, system, answer)
    if format == "llama-3":
        return llama3_turn(tokenizer, message, first, system, answer)
    if format != "plain":
        raise ValueError(f"chat format {format!r} is not one of {', '.join(FORMATS)}")
    text = "\n".join(part for part in (system, message, answer) if part)
    return tokenizer.encode(text, bos=first)


def llama2_turn(
    tokenizer: Tokenizer, message: str, system: str | None, answer: str | None
) -> list[int]:
    """``<s>[INST] message [/INST] answer </s>``."""
    for part in (message, system or "", answer or ""):
        for mark in LLAMA2_MARKS:
            if mark in part:
                raise ValueError(f"a message holds {mark}, which marks turns itself")
    if system is not None:
        message = f"<<SYS>>\n{system}\n<</SYS>>\n\n{message}"
    question = f"[INST] {message.strip()} [/INST]"
    if answer is None:
        return tokenizer.encode(question, bos=True)
    return tokenizer.encode(f"{question} {answer.strip()} ", bos=True, eos=True)


def llama3_turn(
    tokenizer: Tokenizer,
    message: str,
    first: bool,
    system: str | None,
    answer: str | None,
) -> list[int]:
    """Messages with headers, and the header of the assistant's answer."""
    special = tokenizer.special
    if "<|eot_id|>" not in special or "<|start_header_id|>" not in special:
        raise ValueError("this tokenizer has no <|eot_id|>: it is not LLaMA 3's")

    def plain(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False)

    def header(role: str) -> list[int]:
        begin, end = special["<|start_header_id|>"], special["<|end_header_id|>"]
        return [begin, *plain(role), end, *plain("\n\n")]

    def said(role: str, text: str) -> list[int]:
        return [*header(role), *plain(text.strip()), special["<|eot_id|>"]]

    tokens = tokenizer.encode("", bos=first)
    if system is not None:
        tokens += said("system", system)
    tokens += said("user", message)
    return tokens + (
        header("assistant") if answer is None else said("assistant", answer)
    )


def stop_tokens(tokenizer: Tokenizer, format: str) -> set[int]:
    """Tokens that end an answer."""
    ends = {tokenizer.eos_id}
    if format == "llama-3":
        names = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
        ends |= {tokenizer.special.get(name) for name in names}
    return {token for token in ends if token is not None}


def closing(tokenizer: Tokenizer, format: str) -> list[int]:
    """What ends an answer that was broken off before it ended itself."""
    if format == "llama-3":
        return [tokenizer.special["<|eot_id|>"]]
    return [tokenizer.eos_id] if format == "llama-2" and tokenizer.eos_id else []


def detect_format(tokenizer: Tokenizer, config: Mapping[str, Any] | None = None) -> str:
    """The form of conversation that a checkpoint was trained on, as far as is known.

    Parameters
    ----------
    config : mapping
        Its ``tokenizer_config.json``, whose chat template tells.
    """
    template = str((config or {}).get("chat_template") or "")
    if "<|start_header_id|>" in template:
        return "llama-3"
    if "[INST]" in template:
        return "llama-2"
    if not template and "<|eot_id|>" in tokenizer.special:
        return "llama-3"
    return "plain"
