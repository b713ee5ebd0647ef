r"""How a conversation becomes one text.

In a form that `forms` knows, a conversation is its turns, one after the other.  For
any other form, the checkpoint has a template in Jinja, and the whole conversation is
rendered again for each answer, since a template may change early turns when later
ones follow.

A model's template shows the form on which it was trained.  Without a template, the
marks in its vocabulary show it; without these, it is a base model, which was not
trained on conversations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from npllama.text.forms import FORMS, end_name
from npllama.text.rendering import render
from npllama.text.tokenizer import Tokenizer
from npllama.text.turns import guard_for, guarded, turn_tokens

Message = Mapping[str, str]


#  ---- a whole conversation ---------------------------------------------------


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
    format : str
        One of `FORMATS`.

    Raises
    ------
    ValueError
        If the roles are in another order, a message holds marks that are text, the
        tokenizer lacks a mark, or the template fails.
    """
    system, questions, answers = parts_of(dialog)
    if format == "template":
        return template_tokens(tokenizer, dialog)
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


def template_tokens(tokenizer: Tokenizer, dialog: Sequence[Message]) -> list[int]:
    """Tokens of a conversation as the checkpoint's own template writes it.

    Raises
    ------
    ValueError
        If there is no template, it fails, or Jinja is not installed.
    """
    if not tokenizer.chat_template:
        raise ValueError("format: this model has no chat template")
    guard = guard_for(*(message["content"] for message in dialog))
    messages = [
        {**message, "content": guarded(message["content"], tokenizer, None, guard)}
        for message in dialog
    ]
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    names = {key: tokenizer.piece(i) for key, i in ends.items() if i is not None}
    try:
        text = render(tokenizer.chat_template, messages, names)
    except ImportError:
        raise ValueError(
            "format: the model's chat template needs Jinja; install npllama[chat]"
        ) from None
    return tokenizer.encode(
        text, bos=False, eos=False, allowed_special="all", guard=guard
    )


#  ---- ends -------------------------------------------------------------------

# Names that end an answer, in the templates of some family.
END_NAMES = """<|eot_id|> <|eom_id|> <|end_of_text|> <|im_end|> <|endoftext|> <|end|>
    <|EOT|> <|end_of_turn|> <end_of_turn> <\uff5cend\u2581of\u2581sentence\uff5c>""".split()


def stop_tokens(tokenizer: Tokenizer, format: str) -> set[int]:
    """Tokens that end an answer."""
    names: Iterable[str] = ()
    if format == "llama-3":
        names = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    elif format == "chatml":
        names = ("<|im_end|>", "<|endoftext|>")
    elif format == "template":
        names = [name for name in END_NAMES if name in tokenizer.chat_template]
    found = {tokenizer.marks[name].id for name in names if name in tokenizer.marks}
    return found if tokenizer.eos_id is None else found | {tokenizer.eos_id}


def closing(tokenizer: Tokenizer, format: str) -> list[int]:
    """The tokens that end an answer that was interrupted."""
    if format not in FORMS:
        return []
    name = FORMS[format].end.format(eos=end_name(tokenizer))
    return [tokenizer.marks[name].id] if name in tokenizer.marks else []


#  ---- which form -------------------------------------------------------------

# Text that a template of each form contains; the first match counts.
TELLING = {
    "llama-3": ("<|start_header_id|>",),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-2": ("[INST]",),
    "zephyr": ("<|user|>", "<|assistant|>"),
    "vicuna": ("USER:", "ASSISTANT:"),
    "deepseek": ("User:", "Assistant:"),
}


def detect_format(tokenizer: Tokenizer) -> str:
    """The form of conversation that a checkpoint was trained on, as far as is known.

    The chat template shows it; without one, the marks in the vocabulary.
    """
    template = tokenizer.chat_template
    for format, signs in TELLING.items():
        known = all(mark in tokenizer.marks for mark in FORMS[format].marks)
        if template and all(sign in template for sign in signs):
            return format if known else "template"
        if not template and FORMS[format].marks and known:
            return format
    return "template" if template else "plain"


PROBES = (
    [("user", "Hi")],
    [("user", "Hi"), ("assistant", "Yes."), ("user", "So?")],
    [("system", "Be brief."), ("user", "Hi")],
)


def choose_format(tokenizer: Tokenizer) -> tuple[str, str]:
    """The form to use, and the reason in words.

    If Jinja is installed, the detected form is compared with the output of the
    template; if they differ, the template itself is used.
    """
    format = detect_format(tokenizer)
    if not tokenizer.chat_template:
        known = format != "plain"
        why = "this model has no chat format; it only continues the text"
        return format, "told from the vocabulary" if known else why
    if format == "template":
        return format, "as the model's own chat template writes them"
    try:
        agree = all(_agree(tokenizer, probe, format) for probe in PROBES)
    except ImportError:
        return format, "told from the chat template, unchecked without npllama[chat]"
    except ValueError as error:
        return format, f"told from the chat template, which fails ({error})"
    if not agree:
        return "template", "as the model's own chat template writes them"
    return format, "as the model's own chat template writes them, too"


def _agree(tokenizer: Tokenizer, probe: Sequence[tuple[str, str]], format: str) -> bool:
    """Whether form and template write one conversation with the same tokens."""
    import jinja2  # noqa: F401

    dialog = [{"role": role, "content": said} for role, said in probe]
    try:
        written = template_tokens(tokenizer, dialog)
    except ValueError:
        if dialog[0]["role"] == "system":  # which some templates refuse
            return True
        raise
    return written == chat_tokens(tokenizer, dialog, format)
