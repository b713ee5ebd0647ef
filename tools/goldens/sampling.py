"""Record what transformers' logits processors do to the inputs of the tests.

The inputs are made by tests/sampling_cases.py, so only answers are stored: for
every case which tokens stay, a bit each, and the values that changed. The
processors run twice, in float32, as everyone runs them, and in float64. Where
rounding alone makes the two disagree about which tokens stay, the float64
answer is stored beside the other, for the rows concerned.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers.generation import logits_process as hf

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import sampling_cases as cases  # noqa: E402


class _Unconditional:
    """A model whose answer is already known, for the guidance processor."""

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, input_ids, **_):
        answer = _Answer()
        answer.logits = self.logits[:, None]
        return answer


class _Answer(dict):
    logits: torch.Tensor


def _guidance(scale):
    def build(g, dtype):
        model = _Unconditional(torch.tensor(g.unconditional, dtype=dtype))
        return hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)

    return build


def _plain(kind, *args, **kwargs):
    return lambda g, dtype: kind(*args, **kwargs)


def _watermark(config):
    return lambda g, dtype: hf.WatermarkLogitsProcessor(
        g.logits.shape[1],
        "cpu",
        greenlist_ratio=config.greenlist_ratio,
        bias=config.bias,
        hashing_key=config.hashing_key,
        seeding_scheme=config.seeding_scheme,
        context_width=config.context_width,
    )


class _SynthID:
    """Two calls of the processor, the second one's answer."""

    def __init__(self, config):
        self.processor = hf.SynthIDTextWatermarkLogitsProcessor(
            config.ngram_len,
            list(config.keys),
            config.sampling_table_size,
            config.sampling_table_seed,
            config.context_history_size,
            "cpu",
        )

    def __call__(self, tokens, logits):
        self.processor(tokens[:, :0], logits)
        return self.processor(tokens[:, :1], logits)


def _eos(g):
    return cases.eos(g.logits.shape[1])


def _prompt(g):
    return torch.tensor(g.prompt)[None]


PROCESSORS = {
    "temperature 0.7": _plain(hf.TemperatureLogitsWarper, 0.7),
    "temperature 1.7": _plain(hf.TemperatureLogitsWarper, 1.7),
    "top_k 1": _plain(hf.TopKLogitsWarper, 1),
    "top_k 3": _plain(hf.TopKLogitsWarper, 3),
    "top_k 50": _plain(hf.TopKLogitsWarper, 50),
    "top_k 2 keep 4": _plain(hf.TopKLogitsWarper, 2, min_tokens_to_keep=4),
    "top_p 0": _plain(hf.TopPLogitsWarper, 0.0),
    "top_p 0.1": _plain(hf.TopPLogitsWarper, 0.1),
    "top_p 0.5": _plain(hf.TopPLogitsWarper, 0.5),
    "top_p 0.9": _plain(hf.TopPLogitsWarper, 0.9),
    "top_p 0.95 keep 3": _plain(hf.TopPLogitsWarper, 0.95, min_tokens_to_keep=3),
    "min_p 0.05": _plain(hf.MinPLogitsWarper, 0.05),
    "min_p 0.5": _plain(hf.MinPLogitsWarper, 0.5),
    "min_p 1": _plain(hf.MinPLogitsWarper, 1.0),
    "min_p 0.3 keep 2": _plain(hf.MinPLogitsWarper, 0.3, min_tokens_to_keep=2),
    "typical_p 0.2": _plain(hf.TypicalLogitsWarper, 0.2),
    "typical_p 0.9": _plain(hf.TypicalLogitsWarper, 0.9),
    "typical_p 0.5 keep 3": _plain(hf.TypicalLogitsWarper, 0.5, min_tokens_to_keep=3),
    "epsilon_cutoff 3e-4": _plain(hf.EpsilonLogitsWarper, 3e-4),
    "epsilon_cutoff 0.06": _plain(hf.EpsilonLogitsWarper, 0.06),
    "epsilon_cutoff 0.4 keep 2": _plain(
        hf.EpsilonLogitsWarper, 0.4, min_tokens_to_keep=2
    ),
    "eta_cutoff 3e-4": _plain(hf.EtaLogitsWarper, 3e-4),
    "eta_cutoff 0.06": _plain(hf.EtaLogitsWarper, 0.06),
    "eta_cutoff 0.4 keep 2": _plain(hf.EtaLogitsWarper, 0.4, min_tokens_to_keep=2),
    "top_h 0.1": _plain(hf.TopHLogitsWarper, 0.1),
    "top_h 0.4": _plain(hf.TopHLogitsWarper, 0.4),
    "top_h 0.9": _plain(hf.TopHLogitsWarper, 0.9),
    "repetition_penalty 1.3": _plain(hf.RepetitionPenaltyLogitsProcessor, 1.3),
    "repetition_penalty 0.7": _plain(hf.RepetitionPenaltyLogitsProcessor, 0.7),
    "repetition_penalty 1.5 from 11": _plain(
        hf.RepetitionPenaltyLogitsProcessor, 1.5, prompt_ignore_length=11
    ),
    "encoder_repetition_penalty 1.3": lambda g, dtype: (
        hf.EncoderRepetitionPenaltyLogitsProcessor(1.3, _prompt(g))
    ),
    "no_repeat_ngram 1": _plain(hf.NoRepeatNGramLogitsProcessor, 1),
    "no_repeat_ngram 2": _plain(hf.NoRepeatNGramLogitsProcessor, 2),
    "no_repeat_ngram 3": _plain(hf.NoRepeatNGramLogitsProcessor, 3),
    "encoder_no_repeat_ngram 1": lambda g, dtype: (
        hf.EncoderNoRepeatNGramLogitsProcessor(1, _prompt(g))
    ),
    "encoder_no_repeat_ngram 2": lambda g, dtype: (
        hf.EncoderNoRepeatNGramLogitsProcessor(2, _prompt(g))
    ),
    "encoder_no_repeat_ngram 4": lambda g, dtype: (
        hf.EncoderNoRepeatNGramLogitsProcessor(4, _prompt(g))
    ),
    "bad_words": lambda g, dtype: hf.NoBadWordsLogitsProcessor(
        [list(word) for word in cases.words(g.logits.shape[1])], _eos(g)
    ),
    "sequence_bias": lambda g, dtype: hf.SequenceBiasLogitsProcessor(
        cases.biases(g.logits.shape[1])
    ),
    "prefix_allowed_tokens": _plain(
        hf.PrefixConstrainedLogitsProcessor, cases.allowed, 1
    ),
    "prefix_allowed_tokens 3 beams": _plain(
        hf.PrefixConstrainedLogitsProcessor, cases.allowed, 3
    ),
    "suppress": lambda g, dtype: hf.SuppressTokensLogitsProcessor(_eos(g)),
    "begin_suppress 14": lambda g, dtype: hf.SuppressTokensAtBeginLogitsProcessor(
        _eos(g), 14
    ),
    "min_length 14": lambda g, dtype: hf.MinLengthLogitsProcessor(14, _eos(g)),
    "min_length 15": lambda g, dtype: hf.MinLengthLogitsProcessor(15, _eos(g)),
    "min_new_tokens 10": lambda g, dtype: hf.MinNewTokensLengthLogitsProcessor(
        4, 10, _eos(g)
    ),
    "min_new_tokens 11": lambda g, dtype: hf.MinNewTokensLengthLogitsProcessor(
        4, 11, _eos(g)
    ),
    "forced_bos": _plain(hf.ForcedBOSTokenLogitsProcessor, 0),
    "forced_eos 15": lambda g, dtype: hf.ForcedEOSTokenLogitsProcessor(15, _eos(g)),
    "remove_invalid_values": _plain(hf.InfNanRemoveLogitsProcessor),
    "exponential_decay 1.1": lambda g, dtype: hf.ExponentialDecayLengthPenalty(
        (7, 1.1), _eos(g), 4
    ),
    "exponential_decay 0.9": lambda g, dtype: hf.ExponentialDecayLengthPenalty(
        (7, 0.9), _eos(g), 4
    ),
    "renormalize": _plain(hf.LogitNormalization),
    "guidance 0": _guidance(0.0),
    "guidance 1": _guidance(1.0),
    "guidance 1.5": _guidance(1.5),
    "watermark lefthash": _watermark(cases.LEFT),
    "watermark selfhash": _watermark(cases.SELF),
    "synthid": lambda g, dtype: _SynthID(cases.SYNTHID),
}


def answer(name, group, dtype):
    """Return what transformers makes of one group, as NumPy.

    Two conventions are translated, so that a removed token is -inf: guidance
    leaves NaN where both rows had removed it, SynthID the lowest number.
    """
    if name == "watermark selfhash":
        group = group._replace(logits=group.logits[::16], tokens=group.tokens[::16])
    processor = PROCESSORS[name](group, dtype)
    logits = torch.tensor(group.logits, dtype=dtype)
    out = processor(torch.tensor(group.tokens), logits).numpy()
    if name.startswith("guidance"):
        out = np.where(np.isnan(out), -np.inf, out)
    if name == "synthid":
        out = np.where(out == np.finfo(out.dtype).min, -np.inf, out)
    return out


def record(name, parts):
    """Return the arrays that hold the answers of one case."""
    kept, changed, values, rows, exact = [], [], [], [], []
    for number, group in enumerate(parts):
        if cases.used(name, group) is None:
            continue
        out = answer(name, group, torch.float32)
        left = out > -np.inf
        kept.append(np.packbits(left))
        new = left & (out != cases.used(name, group))
        changed.append(np.packbits(new))
        values.append(out[new])
        other = answer(name, group, torch.float64) > -np.inf
        for row in np.flatnonzero((left != other).any(axis=1)):
            rows.append((number, row))
            exact.append(np.packbits(other[row]))
    return {
        f"{name}/kept": np.concatenate(kept),
        f"{name}/changed": np.concatenate(changed),
        f"{name}/values": np.concatenate(values),
        f"{name}/rounded": np.array(rows, np.int16).reshape(-1, 2),
        f"{name}/exact": np.concatenate([*exact, np.zeros(0, np.uint8)]),
    }


def make(folder):
    """Write sampling_transformers.npz into `folder`."""
    torch.set_num_threads(1)
    parts = cases.groups()
    arrays = {"checksum": np.array(cases.checksum(parts))}
    for name in PROCESSORS:
        arrays |= record(name, parts)
    path = Path(folder) / "sampling_transformers.npz"
    beside = path.with_suffix(".tmp.npz")
    np.savez_compressed(beside, **arrays)
    beside.replace(path)


if __name__ == "__main__":
    make(sys.argv[1])
