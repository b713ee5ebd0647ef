r"""One turn of a conversation, as tokens.

A message is data.  If a user's ``<|eot_id|>`` or ``[/INST]`` counted as the mark, the
user could write the assistant's part.  If the marks are special tokens, such strings
are encoded as plain text: a guard, a character that occurs in no message, is put into
each name, and removed after the marks were found.  If the marks *are* text, a
message that holds one is refused, as in Meta's code.  This applies to the
message as the tokenizer reads it, since some tokenizers read a fullwidth
bracket as a bracket.
"""

from __future__ import annotations

from npllama.text.forms import (
    FORMATS,
    FORMS,
    Form,
    begins_with_bos,
    check_marks,
    default_system,
    end_name,
    marks_of,
)
from npllama.text.tokenizer import SPACE, Tokenizer

GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # not characters, says Unicode


#  ---- messages as data -------------------------------------------------------


def refuse_marks(tokenizer: Tokenizer, message: str, format: str) -> None:
    """Raise ValueError if a message, as the tokenizer reads it, holds a text mark."""
    texts = FORMS[format].texts
    if texts:
        read = tokenizer.decode(tokenizer.encode(message, bos=False, eos=False))
        for mark in texts:
            if mark in message or mark in read:
                raise ValueError(
                    f"message: {mark} marks turns in {format}, so it is refused"
                )


def guard_for(*texts: str | None) -> str:
    """A character that occurs in none of the texts."""
    for guard in GUARDS:
        if not any(guard in (text or "") for text in texts):
            return guard
    raise ValueError(
        "message: it holds all of U+FDD0 to U+FDEF, which are no characters"
    )


def guarded(
    text: str | None, tokenizer: Tokenizer, form: Form | None, guard: str
) -> str | None:
    """The text with a guard in every name of a mark."""
    if text is None:
        return None
    names = {*tokenizer.special, *(form.marks if form else ())}
    for name in names:
        if len(name) == 1 and name in text:
            raise ValueError(f"message: {name!a} is a special token, so it is refused")
        text = text.replace(name, f"{name[:1]}{guard}{name[1:]}") if name else text
    return text


#  ---- one turn ---------------------------------------------------------------


def turn_tokens(
    tokenizer: Tokenizer,
    message: str,
    format: str,
    first: bool,
    system: str | None = None,
    answer: str | None = None,
) -> list[int]:
    """Tokens of one turn; those of all turns together are `chat_tokens`.

    A program that keeps its cache runs these tokens, appends the answer, and also
    `closing` if the answer was interrupted.

    Parameters
    ----------
    tokenizer : Tokenizer
    message : str
        The user's.
    format : str
        One of `FORMATS` except "template", which may change a turn later.
    first : bool
        Whether the conversation begins here.
    system : str
        Instructions, which are part of the first turn only.  Without them, ChatML
        and Vicuna begin with the instructions from their training.
    answer : str
        The assistant's, if it is known.

    Raises
    ------
    ValueError
        If a message holds marks that are text, or the tokenizer lacks a mark.
    """
    system = system if first else None
    if format == "plain":
        return plain_turn(tokenizer, message, first, system, answer)
    if format not in FORMS:
        raise ValueError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    form = FORMS[format]
    check_marks(tokenizer, format)
    for said in (system, message, answer):
        refuse_marks(tokenizer, said or "", format)
    if first and system is None:
        system = default_system(tokenizer, format)
    guard = guard_for(system, message, answer)
    parts = [guarded(s, tokenizer, form, guard) for s in (system, message, answer)]
    text = turn_text(form, tokenizer, first, *parts)
    ends = format == "llama-2"  # whose turns are sequences
    return tokenizer.encode(
        text,
        bos=ends or (first and begins_with_bos(tokenizer, form)),
        eos=ends and answer is not None,
        allowed_special=[
            m for m in marks_of(tokenizer, form) if m in tokenizer.special
        ],
        guard=guard,
        continuing=not (first or ends),
    )


def turn_text(
    form: Form,
    tokenizer: Tokenizer,
    first: bool,
    system: str | None,
    message: str,
    answer: str | None,
) -> str:
    """One turn as a text, in which the names of marks stand for them."""
    eos = end_name(tokenizer)
    parts = [system, message, answer]
    if form.strip:
        parts = [part if part is None else part.strip() for part in parts]
    system, message, answer = parts
    opening = "" if system is None else form.system.format(system, eos=eos)
    if form is FORMS["llama-2"]:
        text = form.user.format((opening + message).strip())
        return text if answer is None else text + form.answer.format(answer.strip())
    text = "" if first else form.between
    text += opening + form.user.format(message, eos=eos) + form.assistant
    if answer is None:
        return text
    return text + form.answer.format(answer) + form.end.format(eos=eos)


def plain_turn(
    tokenizer: Tokenizer,
    message: str,
    first: bool,
    system: str | None,
    answer: str | None,
) -> list[int]:
    """Only the texts, each on its own line."""
    lines = "\n".join(part for part in (system, message, answer) if part is not None)
    if first:
        return tokenizer.encode(lines, eos=False)
    tokens = tokenizer.encode(f"\n{lines}", bos=False, eos=False)
    # SentencePiece's own space would stand at the end of the line before.
    return tokens[1:] if tokenizer.piece(tokens[0]) == SPACE else tokens
