"""Questions of learners, and where the book answers each.

Whoever asks looks up a word in the index (the first click) and is led to the page
(the second).  The answer stands there in the words given here.
"""

from typing import NamedTuple


class Question(NamedTuple):
    """A question; the word to look up; the page that answers; words of the answer."""

    asked: str
    word: str
    page: str
    answer: str


QUESTIONS = [
    Question(*row)
    for row in [
        ("What is 1 / sqrt(D) for?", "square root of D, scale of scores", "attention",
         "no softmax shall be sharp only because heads are large"),
        ("Which key heads does query head 5 look at?", "grouped-query attention, GQA", "attention",
         "Query head h belongs to key/value head h // G"),
        ("Why does attention know distances, and not positions?", "distance of positions", "rope",
         "depends only on the difference of their angles"),
        ("Why does the model need a norm at all?", "RMSNorm", "norm",
         "only trains if the numbers that flow through it keep"),
        ("Why are a prompt and a new token so different in cost?", "prefill", "cache",
         "one more token costs the work of one position"),
        ("Why is p = 1 not 'keep all' in float32?", "top-k, top-p, min-p", "sampling.truncation",
         "the sum may reach 1 before the last token"),
        ("What happens to rare tokens at temperature 2?", "temperature",
         "sampling.temperature", "Above 1 all tokens approach equal chances"),
        ("Why does the same seed give another text elsewhere?", "seed, chance, u",
         "sampling.draw", "Other libraries draw from the same distribution in other"),
        ("Why does a rejected guess not spoil the odds?", "rejection",
         "decoding.rejection", "The token is then distributed exactly as p"),
        ("Why do beams divide by the length?", "length penalty", "decoding.beam",
         "A sum of logarithms falls with every token"),
        ("Why is half a character never shown?", "UTF-8, half a character", "text.tokenizer",
         "never returns half a character"),
        ("When does a bigger batch stop being free?", "batch, larger", "cost.curves",
         "as long as memory is the bound and the weights are most of what is read"),
        ("Why does decode leave the processor idle?", "decode, why it is slow", "cost.roofline",
         "it is bound by memory and the processor waits"),
        ("How wrong may a right backend be?", "floor", "golden.floor",
         "in all the ways in which right backends differ"),
        ("Why do the last bits change with the batch?", "batch invariance, last bits", "ops",
         "BLAS sums a row in another order when there are more rows beside it"),
        ("Where do the keys of a page lie after a fork?", "copy-on-write",
         "serving.blocks", "Only when one of the two writes into a page that they share"),
        ("Why does a long prompt not delay everybody?", "long prompt",
         "serving.scheduler", "a long prompt delays nobody's next token"),
        ("How can a softmax be computed in pieces?", "attention state",
         "contexts.states", "The states of two sets without a common key give that of"),
        ("Why must the first tokens stay in an endless text?", "sinks",
         "contexts.streaming", "a softmax must put its weight somewhere"),
        ("Why does FlashAttention move less?", "FlashAttention", "contexts.tiles",
         "FlashAttention never writes a score into the slow memory"),
        ("How does GPTQ make up for a rounded weight?", "GPTQ", "compression.gptq",
         "a change of one weight can be made up for by changes of others"),
        ("Why are keys rounded per channel?", "per channel", "compression.kv_rounding",
         "a few channels of the keys are large at all positions"),
    ]
]  # fmt: skip
