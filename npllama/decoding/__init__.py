"""Chapter 14: from distributions to texts, one strategy per file.

What all share
    `common`            what goes into a strategy and what comes out; prefill
    `stopping`          end tokens, stop strings, the clock
    `logprobs`          how likely the model found a text
    `follower`          a second opinion that keeps up with the text

One token after the other
    `layers`            what every layer would have said
    `sample`            greedy search and sampling
    `contrastive_search`  likely, and unlike the text so far
    `dola`              late layers against early ones
    `contrastive_decoding`  an expert against an amateur

Several texts compared
    `beam`              beam search and beam sampling
    `group_beam`        groups that keep out of each other's way
    `constrained_beam`  texts that hold given phrases
    `constrained_beam_4`  the same as transformers 4 did it
    `stochastic_beam`   several texts drawn, no two equal

Several tokens at once
    `rejection`         the rule that makes guessing exact
    `speculative`       the loop, and a small model as draft
    `prompt_lookup`     what came once comes again
    `self_speculation`  the model as its own draft
    `tree`              several guesses in one pass
    `lookahead`         guesses from parallel iterations

Text held to a format
    `regex`             a pattern read as a tree
    `automaton`         trees as machines that read bytes
    `json_text`         how JSON writes single values
    `schema_words`      the keywords of a schema
    `schema_values`     what a schema says of its values
    `json_schema`       a schema as a machine that reads JSON
    `guided`            mask first, then choose; token healing
    `engine`            formats beyond these, through llguidance
"""

from npllama.decoding.common import (
    Hypothesis,
    Job,
    Process,
    Step,
    Stop,
    context_length,
    extend,
    never,
    prefill,
    unprocessed,
)
from npllama.decoding.contrastive_decoding import contrastive_decoding
from npllama.decoding.contrastive_search import contrastive_search
from npllama.decoding.dola import dola
from npllama.decoding.lookahead import lookahead
from npllama.decoding.prompt_lookup import prompt_lookup
from npllama.decoding.rejection import accept, residual
from npllama.decoding.sample import choose, sample
from npllama.decoding.self_speculation import early_exit, short_context
from npllama.decoding.speculative import Draft, assisted, speculate

__all__ = [
    "Draft",
    "Hypothesis",
    "Job",
    "Process",
    "Step",
    "Stop",
    "accept",
    "assisted",
    "choose",
    "context_length",
    "contrastive_decoding",
    "contrastive_search",
    "dola",
    "early_exit",
    "extend",
    "lookahead",
    "never",
    "prefill",
    "prompt_lookup",
    "residual",
    "sample",
    "short_context",
    "speculate",
    "unprocessed",
]
