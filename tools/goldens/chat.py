"""Conversations as transformers renders them, for templates of many kinds.

The templates are written here, each in the manner of a family.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

TURNS = "{% for message in messages %}"
END = "{% endfor %}"
ASKED = "{% if add_generation_prompt %}"
TEMPLATES = {
    "chatml": TURNS
    + "{% if loop.first and messages[0]['role'] != 'system' %}"
    + "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    + " + '\n'}}"
    + END
    + ASKED
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "zephyr": TURNS
    + "\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] +"
    + " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' +"
    + " message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    + "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    + "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
    + "\n{% endfor %}",
    "vicuna": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    + "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    + "{% set system = 'A chat between a curious user and an artificial intelligence"
    + " assistant. The assistant gives helpful, detailed, and polite answers to the"
    + " user\\'s questions.' %}{% endif %}{{ bos_token + system }}{% for message in rest"
    + " %}{% if message['role'] == 'user' %}{{ (' ' if loop.first else '') + 'USER: ' +"
    + " message['content'] }}{% else %}{{ ' ASSISTANT: ' + message['content'] +"
    + " eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + "{{ ' ASSISTANT:' }}{% endif %}",
    "deepseek": "{{ bos_token }}"
    + TURNS
    + "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    + "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] +"
    + " eos_token }}{% else %}{{ message['content'] + '\n\n' }}{% endif %}"
    + END
    + ASKED
    + "{{ 'Assistant:' }}{% endif %}",
    "llama-3": TURNS
    + "{% set content = '<|start_header_id|>' + message['role'] +"
    + " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    + "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    + "{{ content }}"
    + END
    + ASKED
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages ="
    + " messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}"
    + "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    + "{% for message in loop_messages %}{% if (message['role'] == 'user') !="
    + " (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    + "{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content ="
    + " '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    + "{% else %}{% set content = message['content'] %}{% endif %}"
    + "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() +"
    + " ' [/INST]' }}{% else %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
    + END,
    "instruct": "{{ bos_token }}{%- set ns = namespace(found=false) -%}\n"
    + "{%- for message in messages -%}\n    {%- if message['role'] == 'system' -%}\n"
    + "        {%- set ns.found = true -%}\n    {%- endif -%}\n{%- endfor -%}\n"
    + "{%- if not ns.found -%}\n{{ 'You are a programmer.\n' }}\n{%- endif %}\n"
    + "{%- for message in messages %}\n{%- if message['role'] == 'user' %}\n"
    + "{{ '### Instruction:\\n' + message['content'] + '\\n' }}\n"
    + "{%- elif message['role'] == 'assistant' %}\n"
    + "{{ '### Response:\\n' + message['content'] + '\\n<|EOT|>\\n' }}\n"
    + "{%- else %}\n{{ message['content'] + '\\n' }}\n{%- endif %}\n{%- endfor %}\n"
    + "{{ '### Response:\\n' }}",
    "thinking": "{{ bos_token }}{% for message in messages %}{% if message['role'] =="
    + " 'assistant' and '</think>' in message['content'] %}{% set content ="
    + " message['content'].split('</think>')[-1] %}{% else %}{% set content ="
    + " message['content'] %}{% endif %}{{ '<|' + message['role']|upper + '|>' + content"
    + " + ('<|end|>' if not loop.last else '') }}{% endfor %}{{ '<|A|><think>\n' }}",
    "dated": "{% if strftime_now is defined %}{% set year = strftime_now('%Y')|length %}"
    + "{% endif %}{{ 'digits: ' ~ year ~ '\n' }}{% for m in messages %}"
    + "{% if m.role == 'system' %}{% continue %}{% endif %}"
    + "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}",
    "listed": "{%- for m in messages %}\n    {{- loop.index ~ '. ' }}\n"
    + "    {{- m['role'] | title }}: {{ m['content'] | trim | replace('\\n', ' ') }}\n"
    + "{% endfor %}\n{%- if tools is not none %}{{ tools | tojson(indent=2) }}"
    + "{% endif %}{{ dict(a=1) | tojson }}{% macro f(x) %}<{{ x }}>{% endmacro %}"
    + "{{ f('go') }}",
    "broken off": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    + "{{ m.content }}|{% endfor %}",
}
SAID = [
    [("user", "Hi")],
    [
        ("user", " Hi \n"),
        ("assistant", "a</think>Yes."),
        ("user", "So?\n\n1 < 2 & 'x'"),
    ],
    [("system", "Be brief."), ("user", "caf\u00e9 \u72d0")],
    [("system", ""), ("user", "{{ 1 }}"), ("assistant", "{% x %}"), ("user", "\\n")],
]
DIALOGS = [[{"role": role, "content": text} for role, text in said] for said in SAID]


def tokenizer_of(file: Path) -> PreTrainedTokenizerFast:
    """A tokenizer whose ends are called as LLaMA 2's."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="<s>", eos_token="</s>"
    )


def rendered(tokenizer, template: str, dialog: list[dict]) -> str | None:
    """What transformers writes; None if the template refuses."""
    options = {"tokenize": False, "add_generation_prompt": True}
    try:
        return tokenizer.apply_chat_template(dialog, chat_template=template, **options)
    except Exception:
        return None


def make(folder: Path) -> None:
    """Write chat.json."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "tokenizer.json"
        file.write_bytes((folder / "tokenizers" / "byte_level.json").read_bytes())
        tokenizer = tokenizer_of(file)
    golden = {
        name: {
            "template": template,
            "rendered": [rendered(tokenizer, template, dialog) for dialog in DIALOGS],
        }
        for name, template in TEMPLATES.items()
    }
    text = json.dumps({"dialogs": DIALOGS, "templates": golden}, indent=0)
    (folder / "chat.json").write_text(text + "\n", encoding="utf-8")
