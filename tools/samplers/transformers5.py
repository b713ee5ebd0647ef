"""The processors and searches of transformers 5, one row at a time or in batches.

What `generate` would leave out, a top-p of 1 for example, is left out here, too. Its
searches run on a model whose logits are a function of the text.
"""

# What torch and transformers take and return is not told in types.
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin, logits_process
from transformers.generation.candidate_generator import (
    PromptLookupCandidateGenerator,
)
from transformers.generation.utils import _speculative_sampling
from transformers.modeling_outputs import CausalLMOutput


def factory() -> dict[str, Any]:
    """What transformers offers, held to the kit's own conventions: its own.

    And its top-H to the paper's, which it does not follow.
    """
    offered = truncations() | penalties() | constraints() | searches()
    top_h = offered["top_h"]
    paper = (top_h[0], {"entropy": "renormalised"})
    return offered | {"top_h": [top_h, paper]}


def by_its_conventions() -> dict[str, Any]:
    """The same where transformers leaves more open than the kit.

    torch's sort keeps equals in their order only up to 16 tokens; and no guidance is
    tried on rows from which something was removed.
    """
    offered = factory()
    top_p, said = offered["top_p"]
    return offered | {
        "top_p": (top_p, said | {"ties": "any"}),
        "top_h": offered["top_h"][:1],
        "guidance": (guidance, {"removed": "unsaid"}),
    }


# ---- logits to logits -------------------------------------------------------


def processed(processor: Callable, logits: np.ndarray, history: Any = ()) -> np.ndarray:
    """Run a processor on one row or a batch of them.

    Parameters
    ----------
    processor : function of (B, T) int64 and (B, V) float32 tensors
    logits : (V,) or (B, V) float32
    history : (T,) int, or B of them, of one length
    """
    rows = torch.tensor(np.atleast_2d(logits))
    ids = torch.tensor(np.atleast_2d(np.asarray(history, np.int64)))
    ids = ids.expand(len(rows), -1) if len(ids) == 1 else ids
    return processor(ids, rows).numpy().reshape(logits.shape)


def warper(name: str, keyword: str) -> Callable:
    """A truncation with its option, and the fewest tokens to keep."""
    kind = getattr(logits_process, name)

    def sampler(logits: np.ndarray, option: Any, fewest: int = 1) -> np.ndarray:
        if keyword in ("top_p", "mass") and option >= 1:
            return logits
        least = {} if keyword == "top_h" else {"min_tokens_to_keep": fewest}
        return processed(kind(**{keyword: option}, **least), logits)

    return sampler


def truncations() -> dict[str, Any]:
    """Temperature and all that cut off the tail."""
    both = {"takes_least": True, "batched": True}
    return {
        "greedy": lambda logits: torch.tensor(logits).argmax().item(),
        "sample": draw,
        "temperature": (
            lambda logits, t: processed(
                logits_process.TemperatureLogitsWarper(float(t)), logits
            ),
            {"batched": True},
        ),
        "top_k": (warper("TopKLogitsWarper", "top_k"), both),
        "top_p": (warper("TopPLogitsWarper", "top_p"), both),
        "min_p": (warper("MinPLogitsWarper", "min_p"), both),
        "typical": (warper("TypicalLogitsWarper", "mass"), both),
        "epsilon": (warper("EpsilonLogitsWarper", "epsilon"), both),
        "eta": (warper("EtaLogitsWarper", "epsilon"), both),
        "top_h": (warper("TopHLogitsWarper", "top_h"), {"batched": True}),
        "chain": chain,
    }


def draw(logits: np.ndarray, seed: int) -> int:
    """Draw as `generate` does, by torch's multinomial."""
    probs = torch.tensor(logits).softmax(-1)
    rng = torch.Generator().manual_seed(seed)
    return torch.multinomial(probs, 1, generator=rng).item()


def chain(logits: np.ndarray, t: float, k: int, p: float, least_p: float) -> np.ndarray:
    """The order in which `generate` applies the warpers."""
    logits = processed(logits_process.TemperatureLogitsWarper(t), logits)
    if k:
        logits = warper("TopKLogitsWarper", "top_k")(logits, k)
    logits = warper("TopPLogitsWarper", "top_p")(logits, p)
    return warper("MinPLogitsWarper", "min_p")(logits, least_p) if least_p else logits


def penalties() -> dict[str, Any]:
    """What looks at the text so far."""

    def repetition(logits, history, penalty):
        kind = logits_process.RepetitionPenaltyLogitsProcessor
        return processed(kind(float(penalty)), logits, history)

    def encoder_repetition(logits, prompt, penalty):
        kind = logits_process.EncoderRepetitionPenaltyLogitsProcessor
        ids = torch.tensor(np.asarray(prompt, np.int64)[None])
        return processed(kind(float(penalty), ids), logits)

    def ngram(logits, history, n):
        kind = logits_process.NoRepeatNGramLogitsProcessor
        return processed(kind(n), logits, history)

    def encoder_ngram(logits, history, prompt, n):
        kind = logits_process.EncoderNoRepeatNGramLogitsProcessor
        ids = torch.tensor(np.asarray(prompt, np.int64)[None])
        return processed(kind(n, ids), logits, history)

    def decay(logits, new_tokens, start, factor, eos):
        kind = logits_process.ExponentialDecayLengthPenalty
        return processed(kind((start, factor), eos, 0), logits, [1] * new_tokens)

    return {
        "repetition_penalty": repetition,
        "encoder_repetition_penalty": encoder_repetition,
        "no_repeat_ngram": ngram,
        "encoder_no_repeat_ngram": encoder_ngram,
        "exponential_decay": decay,
    }


def constraints() -> dict[str, Any]:
    """Biases, what is forbidden or forced, guidance."""

    def bias(logits, history, amounts):
        pairs = [[list(key), float(value)] for key, value in amounts.items()]
        kind = logits_process.SequenceBiasLogitsProcessor
        return processed(kind(pairs), logits, history)

    def bad_words(logits, history, words, eos):
        words = [word for word in words if word != [eos]]
        kind = logits_process.NoBadWordsLogitsProcessor
        return processed(kind(words, eos), logits, history) if words else logits

    def at_length(kind: type, *options: Any) -> Callable:
        return lambda logits, length: processed(kind(*options), logits, [0] * length)

    lp = logits_process
    return {
        "sequence_bias": bias,
        "bad_words": bad_words,
        "allowed": lambda row, ids: processed(
            lp.PrefixConstrainedLogitsProcessor(lambda b, text: ids, 1), row, [0]
        ),
        "suppress": lambda row, ids: processed(
            lp.SuppressTokensLogitsProcessor(ids), row
        ),
        "begin_suppress": lambda row, length, ids, begin: at_length(
            lp.SuppressTokensAtBeginLogitsProcessor, ids, begin
        )(row, length),
        "min_length": lambda row, length, least, eos: at_length(
            lp.MinLengthLogitsProcessor, least, eos
        )(row, length),
        "min_new_tokens": lambda row, length, prompt, least, eos: at_length(
            lp.MinNewTokensLengthLogitsProcessor, prompt, least, eos
        )(row, length),
        "forced_eos": lambda row, length, most, eos: at_length(
            lp.ForcedEOSTokenLogitsProcessor, most, eos
        )(row, length),
        "forced_bos": lambda row, length, bos: at_length(
            lp.ForcedBOSTokenLogitsProcessor, bos
        )(row, length),
        "guidance": guidance,
    }


def guidance(logits: np.ndarray, unconditional: np.ndarray, scale: float) -> np.ndarray:
    """Guidance whose second pass is given instead of made."""
    kind = logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor
    processor = kind(scale, model=None)
    other = torch.tensor(np.atleast_2d(unconditional))[:, None]
    processor.get_unconditional_logits = lambda ids: other
    return processed(processor, logits)


# ---- logits to texts --------------------------------------------------------


def searches() -> dict[str, Any]:
    """Greedy and beam search, the rule of speculation, prompt lookup."""
    return {
        "greedy_search": greedy_search,
        "beam_search": beam_search,
        "rejection": verify,
        "prompt_lookup": lookup,
    }


class TextModel(PreTrainedModel, GenerationMixin):
    """A model whose logits are a function of the text."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Callable[[Sequence[int]], np.ndarray]):
        super().__init__(PretrainedConfig(vocab_size=len(logits([0]))))
        self.logits = logits
        self.nothing = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, **others: Any) -> CausalLMOutput:
        """Logits after every token of every row."""
        rows = [
            [self.logits(text[: n + 1]) for n in range(len(text))]
            for text in input_ids.tolist()
        ]
        return CausalLMOutput(logits=torch.tensor(np.array(rows)))


def generated(model: Callable, prompt: Sequence[int], **options: Any) -> Any:
    """Run `generate` on a function of the text."""
    eos = options.pop("eos")
    config = GenerationConfig(
        eos_token_id=eos,
        pad_token_id=0,
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    return TextModel(model).generate(ids, attention_mask=mask, generation_config=config)


def new_tokens(row: torch.Tensor, prompt: Sequence[int], eos: int | None) -> list[int]:
    """What follows the prompt, without the padding after its end."""
    text = row.tolist()[len(prompt) :]
    return text[: text.index(eos) + 1] if eos in text else text


def greedy_search(model: Callable, prompt: Sequence[int], *, eos, **options):
    """`generate` without chance."""
    found = generated(model, prompt, eos=eos, **options)
    return new_tokens(found.sequences[0], prompt, eos)


def beam_search(model: Callable, prompt: Sequence[int], *, num_beams, eos, **options):
    """`generate` with beams, all of which are returned."""
    if num_beams == 1:
        text = greedy_search(
            model, prompt, eos=eos, max_new_tokens=options["max_new_tokens"]
        )
        steps = [prompt + text[:n] for n in range(len(text))]
        logp = [torch.tensor(model(step)).log_softmax(-1) for step in steps]
        total = sum(float(row[token]) for row, token in zip(logp, text))
        return [(text, total / len(text) ** options["length_penalty"])]
    options |= {"num_beams": num_beams, "num_return_sequences": num_beams}
    found = generated(model, prompt, eos=eos, **options)
    texts = [new_tokens(row, prompt, eos) for row in found.sequences]
    return list(zip(texts, found.sequences_scores.tolist()))


def verify(p: np.ndarray, q: np.ndarray, guess: int, u: float, v: float) -> int:
    """The rule of assisted generation, with its two throws of dice replaced."""

    def throw(ratio: torch.Tensor) -> torch.Tensor:
        return torch.full_like(ratio, u)

    def multinomial(probs: torch.Tensor, num_samples: int) -> torch.Tensor:
        ends = probs[0].double().cumsum(-1)
        return (ends <= v * ends[-1]).sum().clamp(max=len(ends) - 1).reshape(1, 1)

    with np.errstate(divide="ignore"):
        rows = [torch.tensor(np.log(row), dtype=torch.float32) for row in (q, p, p)]
    target = torch.stack(rows[1:])[None]
    with (
        mock.patch("torch.rand_like", throw),
        mock.patch("torch.multinomial", multinomial),
    ):
        ids = torch.tensor([[0, guess]])
        found, _ = _speculative_sampling(ids, rows[0][None, None], 1, target)
    return int(found[0, 0])


def lookup(text: list[int], most: int, longest: int) -> list[int]:
    """Candidates of prompt lookup decoding."""
    generator = PromptLookupCandidateGenerator(
        eos_token_id=None,
        num_output_tokens=most,
        max_matching_ngram_size=longest,
        max_length=1000,
    )
    found, _ = generator.get_candidates(torch.tensor([text]))
    return found[0, len(text) :].tolist()
