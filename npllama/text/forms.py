r"""The forms of a conversation: the text around its messages.

A model continues text; a chat model was trained on texts that are conversations,
written in one exact form.  In another form it still answers, but worse.  The usual
forms differ in the text around a message:

- ``llama-2``: each question stands between ``[INST]`` and ``[/INST]``, followed by
  the answer, and every such pair is a sequence of its own, from BOS to EOS.  System
  instructions go, between ``<<SYS>>`` marks, into the first question.
- ``llama-3``: every message has a header that names its author, and ends with
  ``<|eot_id|>``; these marks are special tokens, not text.
- ``chatml`` (SmolLM2, Qwen, Hermes): ``<|im_start|>``, the author, a line end, the
  message, ``<|im_end|>`` and a line end.
- ``zephyr`` (and TinyLlama): the author as ``<|user|>`` on a line, the message, EOS.
- ``vicuna``: ``USER: ... ASSISTANT: ...``, each answer followed by EOS.
- ``deepseek`` (the LLM's): ``User: ...``, an empty line, ``Assistant: ...``, EOS.
- ``plain``: for base models, which were not trained on conversations: messages line
  by line.
- ``template``: the checkpoint's own chat template; see `rendering`.

A model ends its answer with one token.  The text between it and the next question,
such as the line end after ``<|im_end|>``, belongs to the next turn.

References
----------
Meta's code: facebookresearch/llama, llama/generation.py, `chat_completion`;
meta-llama/llama3, llama/tokenizer.py, `ChatFormat`.  OpenAI, "Chat Markup Language".
lm-sys/FastChat, fastchat/conversation.py.  The chat templates of HuggingFaceH4's
zephyr-7b-beta and deepseek-ai's deepseek-llm-7b-chat.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from npllama.text.tokenizer import Tokenizer


class Form(NamedTuple):
    """The text around the messages of a turn; {} is the message.

    `{eos}` is the name of the end token.
    """

    bos: bool  # a conversation begins with BOS
    system: str
    user: str
    assistant: str  # in front of an answer
    answer: str  # a known answer, without its end
    end: str  # the token that ends an answer
    between: str = ""  # after it, before the next question
    marks: tuple[str, ...] = ()  # special tokens that it needs
    texts: tuple[str, ...] = ()  # marks that are text
    strip: bool = False  # messages lose the white space around them


_HEADER = "<|start_header_id|>{0}<|end_header_id|>\n\n"
FORMS = {
    "llama-2": Form(
        bos=True,
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        user="[INST] {} [/INST]",
        assistant="",
        answer=" {} ",
        end="{eos}",
        texts=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "llama-3": Form(
        bos=True,
        system=_HEADER.format("system") + "{}<|eot_id|>",
        user=_HEADER.format("user") + "{}<|eot_id|>",
        assistant=_HEADER.format("assistant"),
        answer="{}",
        end="<|eot_id|>",
        marks=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        strip=True,
    ),
    "chatml": Form(
        bos=False,
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        answer="{}",
        end="<|im_end|>",
        between="\n",
        marks=("<|im_start|>", "<|im_end|>"),
    ),
    "zephyr": Form(
        bos=False,
        system="<|system|>\n{}{eos}\n",
        user="<|user|>\n{}{eos}\n",
        assistant="<|assistant|>\n",
        answer="{}",
        end="{eos}",
        between="\n",
        texts=("<|system|>", "<|user|>", "<|assistant|>"),
    ),
    "vicuna": Form(
        bos=True,
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT:",
        answer=" {}",
        end="{eos}",
        texts=("USER:", "ASSISTANT:"),
    ),
    "deepseek": Form(
        bos=True,
        system="{}\n\n",
        user="User: {}\n\n",
        assistant="Assistant:",
        answer=" {}",
        end="{eos}",
        texts=("User:", "Assistant:"),
    ),
}
LLAMA2_MARKS = FORMS["llama-2"].texts
FORMATS = (*FORMS, "plain", "template")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)


def end_name(tokenizer: Tokenizer) -> str:
    """The name of the end token, "" if there is none."""
    return "" if tokenizer.eos_id is None else tokenizer.piece(tokenizer.eos_id)


def marks_of(tokenizer: Tokenizer, form: Form) -> list[str]:
    """The tokens that a form writes."""
    written = form.system + form.user + form.end
    eos = [end_name(tokenizer)] if "{eos}" in written else []
    return [*form.marks, *eos] if form is not FORMS["llama-2"] else []


def check_marks(tokenizer: Tokenizer, format: str) -> None:
    """Raise ValueError if the tokenizer lacks a token that a form writes."""
    for mark in marks_of(tokenizer, FORMS[format]):
        if mark not in tokenizer.marks:
            raise ValueError(
                f"format: {format} needs {mark or 'an end token'}, which the tokenizer "
                "lacks"
            )


def begins_with_bos(tokenizer: Tokenizer, form: Form) -> bool:
    """Whether a conversation begins with BOS; the chat template may ask for it."""
    return form.bos or "bos_token" in tokenizer.chat_template


def default_system(tokenizer: Tokenizer, format: str) -> str | None:
    """The instructions with which a form begins if none are given."""
    if format == "vicuna":
        return VICUNA_SYSTEM
    if format == "chatml":
        said = r"<\|im_start\|>system(?:\\n|\n)([^'\"{}]+?)<\|im_end\|>"
        if found := re.search(said, tokenizer.chat_template):
            return found[1].replace("\\n", "\n")
    return None
