"""Train the two models that ship with npllama, from nothing but the grammar.

    pip install ".[convert,oracle]"
    python tools/train_stories.py                 everything, 52 minutes on two cores
    python tools/train_stories.py --from-phase 5  only convert and count the stories

The corpus comes from `stories`, the tokenizer is a SentencePiece BPE as LLaMA 2's,
the models are Hugging Face's own `LlamaForCausalLM`, and the result goes through
``npllama convert`` like any checkpoint.  The small model learns from the large
one (its distributions as targets), because it is to guess what the large one says.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
import torch
from stories import check, story
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
UNK, BOS, EOS = 0, 1, 2
VOCABULARY, CONTEXT = 1024, 512


class Phase(NamedTuple):
    """A stretch of training; the learning rate rises, and falls along a cosine."""

    steps: int
    batch: int  # stories
    rate: float
    seed: int  # of the stories
    without: str | None = None  # leave out stories that say this


# Large steps find the plots; smaller ones the details, such as that a thing keeps
# its colour.  One thing so small a model does not learn in an hour: a feeling that a
# single question comes back to.  At last it gets out of the habit of asking.
MAIN_PHASES = (
    Phase(1600, 32, 3e-3, 2),
    Phase(3000, 16, 1.5e-3, 3),
    Phase(300, 16, 1e-3, 5, without="Why are you so"),
)
DRAFT_PHASES = (Phase(600, 16, 6e-3, 4),)

MAIN = dict(
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
)
DRAFT = dict(
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def train_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """A BPE as LLaMA 2 has it: byte fallback, split digits, a dummy space in front."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    model = io.BytesIO()
    # Given as texts, not as a file: a path would be written into the model.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(story(rng) for _ in range(20000)),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def stories(rng: np.random.Generator, without: str | None) -> Iterator[str]:
    """Endless stories, but for those that say something."""
    while True:
        text = story(rng)
        if without is None or without not in text:
            yield text


def batches(tokenizer, size: int, seed: int, without: str | None = None):
    """Endless batches of stories: (tokens, labels), padded, of similar lengths."""
    rng = np.random.default_rng(seed)
    told = stories(rng, without)
    while True:
        texts = list(islice(told, 8 * size))
        rows = sorted(([BOS, *tokenizer.encode(t), EOS] for t in texts), key=len)
        groups = [rows[i : i + size] for i in range(0, len(rows), size)]
        for i in rng.permutation(len(groups)):
            group = groups[i]
            T = max(map(len, group))
            tokens = torch.tensor([row + [EOS] * (T - len(row)) for row in group])
            labels = torch.tensor([row + [-100] * (T - len(row)) for row in group])
            yield tokens, labels


def new_model(sizes: dict) -> LlamaForCausalLM:
    """A LLaMA with random weights, from a fixed seed."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **sizes,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


def train(model, tokenizer, phase: Phase, teacher=None) -> None:
    """AdamW with warm-up and cosine decay; from a teacher's distributions if given."""
    steps, size, rate, seed, without = phase
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}]
    groups += [{"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    begin, tokens_seen = time.time(), 0
    for step, (tokens, labels) in enumerate(batches(tokenizer, size, seed, without)):
        if step == steps:
            return
        share = step / steps
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * cosine
        loss = loss_of(model, tokens, labels, teacher)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens_seen += tokens.numel()
        if step % 50 == 0 or step == steps - 1:
            spent = time.time() - begin
            rate_now = tokens_seen / spent
            print(
                f"step {step:5d}/{steps}  loss {loss.item():.4f}  "
                f"{rate_now:.0f} tokens/s  {spent / 60:.1f} min",
                flush=True,
            )


def loss_of(model, tokens, labels, teacher) -> torch.Tensor:
    """Cross-entropy with the text, or with what the teacher expects of it."""
    logits = model(tokens).logits[:, :-1]
    if teacher is None:
        loss = torch.nn.functional.cross_entropy
        return loss(logits.flatten(0, 1), labels[:, 1:].flatten())
    with torch.no_grad():
        target = teacher(tokens).logits[:, :-1].softmax(-1)
    real = (labels[:, 1:] != -100).float()
    each = (target * logits.log_softmax(-1)).sum(-1)
    return -(each * real).sum() / real.sum()


def save(model, folder: Path, tokenizer_file: Path) -> None:
    """Write a Hugging Face folder, weights rounded to float16."""
    model.half().save_pretrained(folder)
    model.float()
    target = folder / "tokenizer.model"
    if target != tokenizer_file:
        target.write_bytes(tokenizer_file.read_bytes())
    entries = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    entries |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries, indent=1))


def saved(folder: Path) -> LlamaForCausalLM:
    """The model of a folder, as float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def convert(folder: Path, out: Path) -> None:
    """Make the .npz with the tool that everybody uses."""
    tool = ROOT / "tools" / "convert_hf.py"
    command = [sys.executable, str(tool), str(folder), str(out), "--dtype", "float16"]
    subprocess.run(command, check=True)


@torch.no_grad()
def sample(model, tokenizer, count: int, temperature: float, seed: int) -> list[str]:
    """Texts sampled from the beginning-of-sequence token alone."""
    torch.manual_seed(seed)
    out = model.generate(
        torch.full((count, 1), BOS),
        attention_mask=torch.ones(count, 1, dtype=torch.long),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        max_new_tokens=CONTEXT - 1,
        pad_token_id=EOS,
    )
    return [tokenizer.decode([t for t in row if t > EOS]) for row in out.tolist()]


def evaluate(model, tokenizer, name: str) -> None:
    """Print how many samples the grammar's own checker accepts."""
    model.eval()
    for temperature in (0.8, 1.0):
        texts = sample(model, tokenizer, 100, temperature, seed=0)
        good = [text for text in texts if not check(text)]
        print(
            f"{name}: temperature {temperature}: {len(good)} of 100 are stories, "
            f"{len(set(texts))} different",
            flush=True,
        )


@torch.no_grad()
def agreement(model, draft, tokenizer) -> float:
    """Chance that a token drawn from the draft is accepted by the model."""
    tokens, labels = next(batches(tokenizer, 32, seed=1))
    p, q = (m(tokens).logits[:, :-1].softmax(-1) for m in (model, draft))
    real = labels[:, 1:] != -100
    return torch.minimum(p, q).sum(-1)[real].mean().item()


def main() -> int:
    """Train, convert and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--from-phase",
        type=int,
        default=1,
        metavar="N",
        help="go on from the saved model with phase N (4: the draft, 5: nothing)",
    )
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    folders = {name: BUILD / name for name in ("stories", "stories-draft")}
    file = folders["stories"] / "tokenizer.model"
    begin = options.from_phase
    tokenizer = (
        train_tokenizer(folders["stories"])
        if begin == 1
        else sentencepiece.SentencePieceProcessor(str(file))
    )
    model = new_model(MAIN) if begin == 1 else saved(folders["stories"])
    for phase in MAIN_PHASES[begin - 1 :]:
        train(model, tokenizer, phase)
        save(model, folders["stories"], file)
    if begin <= len(MAIN_PHASES) + 1:
        draft = new_model(DRAFT)
        for phase in DRAFT_PHASES:
            train(draft, tokenizer, phase, teacher=model.eval())
        save(draft, folders["stories-draft"], file)
    models = {}
    for name, folder in folders.items():
        convert(folder, ROOT / "weights" / f"{name}.npz")
        models[name] = saved(folder)
        size = sum(p.numel() for p in models[name].parameters())
        print(f"{name}: {size:,} parameters")
        evaluate(models[name], tokenizer, name)
    share = agreement(models["stories"], models["stories-draft"], tokenizer)
    print(f"a drafted token is accepted with probability {share:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
