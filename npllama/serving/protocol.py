"""A client's request, and the model that it addresses.

The body of ``/v1/completions`` or ``/v1/chat/completions`` becomes an `Ask`: prompts
as token ids, and a `GenerationConfig`.

The beginning-of-sequence token is added to text as the checkpoint's tokenizer does
it, and never to token ids: who sends ids says exactly what the model is to read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from npllama.generation.options import GenerationConfig
from npllama.generation.task import encode_prompt, is_prompt, tokenizer_of
from npllama.serving.fields import (
    CHAT,
    COMPLETION,
    Refused,
    config_of,
    options_of,
    read_fields,
)
from npllama.serving.offered import Served
from npllama.text.chat import chat_tokens

SEEDS = 2**64  # OpenAI's may be negative, NumPy's may not


class Ask(NamedTuple):
    """A client's request, checked."""

    prompts: list[list[int]]
    config: GenerationConfig
    n: int  # texts to return for each prompt
    chat: bool = False
    stream: bool = False
    usage: bool = False  # whether a stream ends with its counts of tokens
    silent: bool = False  # max_tokens 0: nothing but the prompt is wanted
    logprobs: bool = False  # whether the answer tells log-probabilities
    seed: int | None = None  # from 0 on

    @property
    def written(self) -> int:
        """Texts that are written for each prompt."""
        return self.config.best_of or self.config.num_return_sequences


#  ---- requests -----------------------------------------------------------------


def completion_of(body: Any, served: Served) -> Ask:
    """Read the body of ``/v1/completions``.

    Raises
    ------
    Refused
        If it asks for what cannot be given, or for another model.
    """
    given, extras = read_fields(body, COMPLETION)
    check_model(given["model"], served)
    options = {"eos_token_id": served.eos} | options_of(given, COMPLETION)
    options["max_new_tokens"] = max(1, given["max_tokens"])
    wanted = given["logprobs"] is not None
    options["echo"], options["prompt_logprobs"] = given["echo"], given["echo"] & wanted
    # `best_of` ranks texts by the log-probabilities of the tokens that were drawn.
    options["logprobs"] = 0 if given["best_of"] and not wanted else given["logprobs"]
    if given["stream"] and (given["best_of"] or given["n"]) > given["n"]:
        raise Refused("best_of cannot be streamed", "best_of")
    config = config_of(options, extras)
    prompts = prompts_of(given["prompt"], served, config)
    silent = given["max_tokens"] == 0
    ask = ask_of(given, prompts, config)
    return ask._replace(silent=silent, logprobs=wanted)


def chat_of(body: Any, served: Served) -> Ask:
    """Read the body of ``/v1/chat/completions``; errors as `completion_of`."""
    given, extras = read_fields(body, CHAT)
    check_model(given["model"], served)
    if given["top_logprobs"] is not None and not given["logprobs"]:
        raise Refused("top_logprobs needs logprobs: true", "top_logprobs")
    prompt = conversation_tokens(given["messages"], served)
    options = {"eos_token_id": served.ends} | options_of(given, CHAT)
    options["max_new_tokens"] = limit_of(given) or max(1, served.longest - len(prompt))
    options["logprobs"] = (given["top_logprobs"] or 0) if given["logprobs"] else None
    config = config_of(options, extras)
    check_length(prompt, served, "messages")
    return ask_of(given, [prompt], config)._replace(
        chat=True, logprobs=given["logprobs"]
    )


def ask_of(
    given: Mapping[str, Any], prompts: list[list[int]], config: GenerationConfig
) -> Ask:
    """The fields that both kinds of body share."""
    wishes = given["stream_options"] or {}
    usage = wishes.get("include_usage") is True
    stream, seed = given["stream"], given["seed"]
    seed = None if seed is None else seed % SEEDS
    return Ask(prompts, config, given["n"], stream=stream, usage=usage, seed=seed)


def check_model(name: str | None, served: Served) -> None:
    """Raise `Refused` if a request names another model; no name means this one."""
    if name not in (None, served.name):
        raise Refused(
            f"the model {name!r:.80} does not exist; this server has {served.name!r}",
            "model",
            status=404,
            code="model_not_found",
        )


def limit_of(given: Mapping[str, Any]) -> int | None:
    """The longest answer allowed, which OpenAI's API states in two ways."""
    old, new = given["max_tokens"], given["max_completion_tokens"]
    if None not in (old, new) and old != new:
        raise Refused(
            f"max_tokens {old} and max_completion_tokens {new} contradict each other",
            "max_tokens",
        )
    return old if new is None else new


#  ---- prompts ------------------------------------------------------------------


def prompts_of(
    prompt: Any, served: Served, config: GenerationConfig
) -> list[list[int]]:
    """The tokens of one prompt or several, each text or token ids."""
    if not isinstance(prompt, (str, tuple)) or prompt == ():
        raise Refused(
            "prompt: expected text, a list of texts, token ids, or lists of token ids",
            "prompt",
        )
    prompts: Sequence[Any] = [prompt] if is_prompt(prompt) else prompt
    found = []
    for one in prompts:
        if not isinstance(one, (str, tuple)):
            raise Refused("prompt: texts and token ids are mixed", "prompt")
        try:
            found.append(encode_prompt(served.model, one, config.allowed_special))
        except (ValueError, TypeError) as error:
            raise Refused(str(error), "prompt") from None
        check_length(found[-1], served, "prompt")
    return found


def check_length(tokens: Sequence[int], served: Served, param: str) -> None:
    """Raise `Refused` if a prompt is empty, or leaves no room for one more token."""
    if not tokens:
        raise Refused("the prompt is empty: give text, or at least one token", param)
    if len(tokens) >= served.longest:
        raise Refused(
            f"the prompt has {len(tokens)} tokens; this server holds {served.longest} "
            "for prompt and text, and at least one must be left to generate",
            param,
            code="context_length_exceeded",
        )


def conversation_tokens(messages: Sequence[Any], served: Served) -> list[int]:
    """The tokens of a conversation, up to the beginning of the next answer."""
    dialog = [message_of(message) for message in messages]
    try:
        return chat_tokens(tokenizer_of(served.model), dialog, served.style)
    except ValueError as error:
        raise Refused(str(error), "messages") from None


def message_of(message: Any) -> dict[str, str]:
    """One message: who speaks, and what."""
    if not isinstance(message, Mapping):
        raise Refused("messages: one is not an object", "messages")
    others = {k for k, v in message.items() if v not in (None, [])}
    if unknown := sorted(others - {"role", "content", "refusal", "annotations"}):
        raise Refused(f"messages: {unknown[0]!r:.80} is not supported here", "messages")
    role = message.get("role")
    # OpenAI's reasoning models call the system's role the developer's.
    role = "system" if role == "developer" else role
    return {"role": role, "content": content_of(message.get("content"))}


def content_of(content: Any) -> str:
    """The content of a message: text, or parts that are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if all(isinstance(text, str) for text in texts):
        return "".join(texts)
    raise Refused("messages: a content is not text, nor a list of texts", "messages")


#  ---- tokens -------------------------------------------------------------------


def tokenized(body: Any, served: Served) -> dict[str, Any]:
    """Answer ``/tokenize``: the tokens of a text, special ones by their names."""
    body = body if isinstance(body, dict) else {}
    text, special = body.get("prompt"), body.get("add_special_tokens", True)
    if "messages" in body and text is None:
        turns = body["messages"] if isinstance(body["messages"], list) else [None]
        tokens = conversation_tokens(turns, served)
    elif not isinstance(text, str) or not isinstance(special, bool):
        raise Refused(
            'expected {"prompt": text, "add_special_tokens": true or false}, or '
            '{"messages": [...]}',
            "prompt",
        )
    else:
        around = None if special else False  # None does what the checkpoint does
        try:
            tokens = tokenizer_of(served.model).encode(
                text, bos=around, eos=around, allowed_special="all"
            )
        except ValueError as error:
            raise Refused(str(error), "prompt") from None
    return {"tokens": tokens, "count": len(tokens), "max_model_len": served.longest}


def detokenized(body: Any, served: Served) -> dict[str, Any]:
    """Answer ``/detokenize``: the text of tokens, special ones by their names."""
    tokens = body.get("tokens") if isinstance(body, dict) else None
    try:
        if not isinstance(tokens, list):
            raise ValueError('expected {"tokens": a list of token ids}')
        ids = encode_prompt(served.model, tokens)
        text = tokenizer_of(served.model).decode(ids, skip_special=False)
    except (ValueError, TypeError) as error:
        raise Refused(str(error), "tokens") from None
    return {"prompt": text}


def tokenizer_info(served: Served) -> dict[str, Any]:
    """Answer ``/tokenizer_info``: the names of the tokens at the ends of a text."""
    try:
        tokenizer = tokenizer_of(served.model)
    except ValueError as error:
        raise Refused(str(error), status=404) from None
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    names = {k: None if i is None else tokenizer.piece(i) for k, i in ends.items()}
    return names | {"vocab_size": served.model.config.vocab_size}
