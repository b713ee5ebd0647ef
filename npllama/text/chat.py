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

``plain`` is for base models, which know of no conversation: messages line by line.

References
----------
Meta's code: facebookresearch/llama, llama/generation.py, `chat_completion`;
meta-llama/llama3, llama/tokenizer.py, `ChatFormat`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from npllama.text.tokenizer import SPACE, Tokenizer

FORMATS = ("llama-2", "llama-3", "plain")
LLAMA2_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
LLAMA3_MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

Message = Mapping[str, str]


def chat_tokens(
    tokenizer: Tokenizer, dialog: Sequence[Message], format: str
) -> list[int]:
    """Tokens of a conversation, up to where the assistant's next answer begins.

    Parameters
    ----------
    tokenizer : Tokenizer
    dialog : sequence of {"role": ..., "content": ...}
        An optional "system" message, then "user" and "assistant" in turn, the last
        one the user's.
    format : "llama-2", "llama-3" or "plain"

    Raises
    ------
    ValueError
        If the roles are in another order, a message holds marks of ``llama-2``, or
        the tokenizer has none of ``llama-3``.
    """
    system, questions, answers = parts_of(dialog)
    tokens = []
    for i, (question, answer) in enumerate(zip(questions, [*answers, None])):
        tokens += turn_tokens(tokenizer, question, format, i == 0, system, answer)
    return tokens


def parts_of(dialog: Sequence[Message]) -> tuple[str | None, list[str], list[str]]:
    """Contents of a dialog: the system's, the user's, the assistant's."""
    for i, message in enumerate(dialog):
        if not isinstance(message, Mapping) or not isinstance(
            message.get("content"), str
        ):
            raise ValueError(f"dialog: message {i} has no content that is a string")
    roles = [str(message.get("role")) for message in dialog]
    start = 1 if roles[:1] == ["system"] else 0
    count = len(roles) - start
    if not count % 2 or roles[start:] != (["user", "assistant"] * count)[:count]:
        raise ValueError(
            "dialog: expected the roles (system), user, assistant, user ..., the last "
            f"one user; found {', '.join(roles) or 'none'}"
        )
    contents = [message["content"] for message in dialog]
    system = contents[0] if start else None
    return system, contents[start::2], contents[start + 1 :: 2]


def turn_tokens(
    tokenizer: Tokenizer,
    message: str,
    format: str,
    first: bool,
    system: str | None = None,
    answer: str | None = None,
) -> list[int]:
    """Tokens of one turn; those of all turns together are `chat_tokens`.

    A program that keeps its cache gives the model these tokens, appends what it
    answers, and `closing` if the answer was broken off.

    Parameters
    ----------
    tokenizer : Tokenizer
    message : str
        The user's.
    format : "llama-2", "llama-3" or "plain"
    first : bool
        Whether the conversation begins here.
    system : str
        Instructions; they are part of the first turn, and of no other.
    answer : str
        The assistant's, if it is known.
    """
    system = system if first else None
    if format == "llama-2":
        return llama2_turn(tokenizer, message, system, answer)
    if format == "llama-3":
        return llama3_turn(tokenizer, message, first, system, answer)
    if format == "plain":
        return plain_turn(tokenizer, message, first, system, answer)
    raise ValueError(f"format: {format!r} is not one of {', '.join(FORMATS)}")


def llama2_turn(
    tokenizer: Tokenizer, message: str, system: str | None, answer: str | None
) -> list[int]:
    """``<s>[INST] message [/INST] answer </s>``.

    The answer's last space is Meta's.  A model that speaks for itself ends without
    it.
    """
    for mark in LLAMA2_MARKS:
        if any(mark in part for part in (message, system or "", answer or "")):
            raise ValueError(
                f"message: {mark} marks turns in llama-2, so it is refused"
            )
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
    """Messages with headers, or the header alone of an answer that is to come."""
    if lacking := [mark for mark in LLAMA3_MARKS if mark not in tokenizer.special]:
        raise ValueError(
            f"format: llama-3 needs {lacking[0]}, which the tokenizer lacks"
        )
    begin, end, eot = (tokenizer.special[mark] for mark in LLAMA3_MARKS)

    def header(role: str) -> list[int]:
        name, gap = (tokenizer.encode(part, bos=False) for part in (role, "\n\n"))
        return [begin, *name, end, *gap]

    def said(role: str, content: str) -> list[int]:
        return [*header(role), *tokenizer.encode(content.strip(), bos=False), eot]

    tokens = tokenizer.encode("", bos=first)
    if system is not None:
        tokens += said("system", system)
    tokens += said("user", message)
    return tokens + (
        header("assistant") if answer is None else said("assistant", answer)
    )


def plain_turn(
    tokenizer: Tokenizer,
    message: str,
    first: bool,
    system: str | None,
    answer: str | None,
) -> list[int]:
    """The texts and nothing else, each on a line of its own."""
    lines = "\n".join(part for part in (system, message, answer) if part is not None)
    if first:
        return tokenizer.encode(lines)
    tokens = tokenizer.encode(f"\n{lines}", bos=False)
    # SentencePiece's own space would stand at the end of the line before.
    return tokens[1:] if tokenizer.piece(tokens[0]) == SPACE else tokens


def stop_tokens(tokenizer: Tokenizer, format: str) -> set[int]:
    """Tokens that end an answer."""
    names = (
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>") if format == "llama-3" else ()
    )
    ends = {tokenizer.eos_id, *map(tokenizer.special.get, names)}
    return {token for token in ends if token is not None}


def closing(tokenizer: Tokenizer, format: str) -> list[int]:
    """What ends an answer that was broken off before it ended itself."""
    ends = {"llama-2": tokenizer.eos_id, "llama-3": tokenizer.special.get("<|eot_id|>")}
    end = ends.get(format)
    return [] if end is None else [end]


def detect_format(tokenizer: Tokenizer) -> str:
    """The form of conversation that a checkpoint was trained on, as far as is known.

    A chat template tells; without one, a vocabulary that has marks of turns.
    """
    template = tokenizer.chat_template
    if "<|start_header_id|>" in template:
        return "llama-3"
    if "[INST]" in template:
        return "llama-2"
    marked = all(mark in tokenizer.special for mark in LLAMA3_MARKS)
    return "llama-3" if marked and not template else "plain"
