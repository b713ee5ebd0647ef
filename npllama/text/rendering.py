r"""Rendering a chat template, where it can do no harm.

A checkpoint describes its form of conversations as a template in Jinja.  A template is
a program by a stranger, so it runs inside three fences:

- Jinja's sandbox, which keeps it from Python's own objects;
- a process of its own, with limits for time, memory and the size of files, since
  ``{% for i in range(99999) %}`` twice, or ``9**9**9``, breaks no rule of the sandbox;
- data of its own: it gets only strings, numbers, lists and dictionaries.

The environment is the one that transformers renders templates in: blocks are
trimmed, loops may break and continue, and ``raise_exception``, ``tojson``,
``strftime_now`` and the ``generation`` block are there.

This file is also the program of that process.  It reads one JSON object from
standard input and writes one: {"text": ...} or {"error": ...}.

References
----------
Hugging Face transformers, utils/chat_template_utils.py; Jinja, "Sandbox".
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

SECONDS = 3  # of processor time; the clock may show more
MEMORY = 512 * 2**20
LONGEST = 4 * 2**20  # characters


def render(
    template: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]
) -> str:
    """The text of a conversation, up to where the assistant's answer begins.

    Parameters
    ----------
    template : str
    messages : sequence of {"role": ..., "content": ...}
    names : mapping of str to str
        Such as "bos_token" and "eos_token".

    Raises
    ------
    ValueError
        If the template fails, refuses the messages, or breaks a limit.
    ImportError
        If Jinja is not installed.
    """
    import jinja2  # noqa: F401

    task = {"template": template, "messages": list(messages), "names": dict(names)}
    try:
        child = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(task).encode(),
            capture_output=True,
            timeout=4 * SECONDS,
        )
        answer = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        raise ValueError("chat template: it took too long") from None
    except ValueError:
        raise ValueError("chat template: it took too much time or memory") from None
    if "error" in answer:
        raise ValueError(f"chat template: {' '.join(answer['error'].split()):.200}")
    return answer["text"]


#  ---- in the process of its own ----------------------------------------------


def environment() -> Any:
    """The environment of transformers."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Generation(Extension):
        """A block around the assistant's messages; only training uses it."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("inside")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def inside(self, caller):
            return caller()

    class Namespace(jinja2.utils.Namespace):
        """Variables that a loop can set; none of them begins with an underscore."""

        def __init__(*arguments, **names):
            self, arguments = arguments[0], arguments[1:]
            values = dict(*arguments, **names)
            for name in values:
                Namespace.check(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name, value):
            Namespace.check(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name):
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a namespace has no attribute {name!r}")

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "namespace": Namespace,
        "dict": lambda *items, **names: dict(*items, **names),
    }
    return made


def raise_exception(message: str) -> None:
    """Refuse a conversation; templates call this."""
    raise ValueError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def limit() -> None:
    """Limit the resources of this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def answer_to(task: dict[str, Any]) -> dict[str, str]:
    """The text of a conversation, or why there is none."""
    made = environment()
    limit()
    try:
        template = made.from_string(task["template"])
        text = template.render(
            messages=task["messages"],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **task["names"],
        )
    except Exception as error:
        return {"error": str(error) or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"the text is longer than {LONGEST} characters"}
    return {"text": text}


def main() -> None:
    """Answer one task."""
    task = json.loads(sys.stdin.buffer.read())
    sys.stdout.write(json.dumps(answer_to(task)))


if __name__ == "__main__":
    # The folder of this file holds modules whose names belong to others here.
    sys.path.pop(0)
    main()
