"""The worked examples of the docstrings: small enough for paper, and true."""

import ast
import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import npllama

# Their libraries are extras, or they run what they show.
APART = ("npllama.__main__", "npllama.serving.http", "npllama.serving.clients")


def modules():
    found = pkgutil.walk_packages(npllama.__path__, "npllama.")
    return [m.name for m in found if not m.name.startswith(APART)]


def with_examples():
    for name in modules():
        path = importlib.util.find_spec(name).origin
        with open(path, encoding="utf-8") as file:
            if ">>> " in file.read():
                yield name


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


# What a reader wants to see in numbers before believing it.
WORKED = {
    "sampling.draw": ["softmax", "greedy", "draw"],
    "sampling.temperature": ["temperature", "dynamic_temperature"],
    "sampling.truncation": [
        "top_k",
        "top_p",
        "min_p",
        "top_a",
    ],
    "sampling.xtc": ["xtc"],
    "sampling.entropy": [
        "typical_p",
        "eta_cutoff",
        "top_h",
        "top_n_sigma",
        "tail_free",
    ],
    "sampling.mirostat": ["mirostat_2"],
    "sampling.penalties": [
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
    ],
    "sampling.repeats": ["no_repeat_ngram", "dry"],
    "sampling.bias": ["logit_bias", "sequence_bias"],
    "sampling.constraints": ["allowed_tokens", "min_new_tokens"],
    "sampling.guidance": ["classifier_free_guidance"],
    "decoding.rejection": ["accept", "residual"],
    "norm": ["rms_norm"],
    "rope": ["rotate"],
    "attention": ["naive"],
    "feedforward": ["silu"],
    "serving.pages": ["places"],
    "serving.blocks": ["grow"],
}


@pytest.mark.parametrize("name", WORKED)
def test_every_idea_is_worked_in_numbers(name):
    source = importlib.util.find_spec(f"npllama.{name}").origin
    with open(source, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    worked = [f.name for f in functions if ">>> " in (ast.get_docstring(f) or "")]
    assert set(WORKED[name]) <= set(worked)
