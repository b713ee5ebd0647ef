"""What the README says is so: its story, its commands, its programs, its links."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from npllama import GenerationConfig, generate, load
from npllama.attention import blocked
from npllama.cli.main import parser
from npllama.sampling import top_p

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for line in README.replace("\\\n", " ").splitlines()
    if line.startswith("    npllama ")
]
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


def words(text):
    return " ".join(text.split())


def test_story_is_told_by_the_model_that_ships():
    shown = words(" ".join(re.findall(r"^> (.*)$", README, re.M)))
    seed = int(re.search(r"That was `--seed (\d+)`", README)[1])
    config = GenerationConfig(do_sample=True, temperature=0.8, max_new_tokens=300)
    prompt = "Once upon a time"
    told = generate(load("stories"), prompt, config, np.random.default_rng(seed))
    assert words(prompt + told.text) == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command):
    parser().parse_args(shlex.split(command, comments=True)[1:])


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_program_runs(program, capsys):
    def my_attention(q, k, v, start, **rest):
        return blocked(q, k, v, start)

    exec(program, {"my_attention": my_attention, "my_top_p": own_top_p})


def own_top_p(logits, p):
    return top_p(logits, p, ties="lowest")


def test_links_and_paths_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    scripts = re.findall(r"`(tools/\w+\.py)`", README)
    assert len(links) > 5 and scripts
    assert [path for path in [*links, *scripts] if not (ROOT / path).exists()] == []
