"""Words of the index that no chapter introduces as its term.

A reader looks up the words that he knows: "RoPE", "seed", "memory-bound".  Each leads to
the page that explains it, and stands there.  Terms of the title page lead on to the
chapter that they are about.
"""

LOOKED_UP = {
    # the network
    "RoPE, rotary embedding": "rope",
    "distance of positions": "rope",
    "relative position": "rope",
    "RMSNorm": "norm",
    "norm": "norm",
    "attention": "attention",
    "query, key, value": "attention",
    "heads": "attention",
    "grouped-query attention, GQA": "attention",
    "multi-query attention, MQA": "attention",
    "square root of D, scale of scores": "attention",
    "softmax": "attention",
    "feed-forward": "feedforward",
    "SwiGLU, SiLU": "feedforward",
    "KV cache": "cache",
    "prompt, cost of": "cache",
    "residual stream": "model",
    "embedding, logits": "model",
    "batch invariance, last bits": "ops",
    "order of summation": "ops",
    # text
    "UTF-8, half a character": "text.tokenizer",
    "chat template": "text.rendering",
    # sampling and search
    "seed, chance, u": "sampling.draw",
    "top-k, top-p, min-p": "sampling.truncation",
    "nucleus sampling": "sampling.truncation",
    "beam search": "decoding.beam",
    "length penalty": "decoding.beam",
    "speculative decoding": "decoding.speculative",
    # cost
    "roofline": "cost.roofline",
    "memory-bound, compute-bound": "cost.roofline",
    "bandwidth": "cost.roofline",
    "decode, why it is slow": "cost.roofline",
    "batch, larger": "cost.curves",
    "tensor parallelism": "cost.cards",
    # the golden reference
    "noise floor, tolerance": "golden.floor",
    # many at once
    "fork of a text": "serving.blocks",
    "chunked prefill": "serving.scheduler",
    "long prompt": "serving.scheduler",
    "paged attention": "serving.pages",
    # long and large
    "FlashAttention": "contexts.tiles",
    "softmax in pieces": "contexts.states",
    "StreamingLLM, endless text": "contexts.streaming",
    "weights on disk": "contexts.storage",
    # few bits
    "GPTQ": "compression.gptq",
    "KIVI": "compression.kv_rounding",
}

# Words that stand in italics for their stress, or mean something on their page alone.
STRESSED = {
    "all kept", "are", "candidates", "choice", "codes", "computed", "dead", "even error",
    "everything else", "explains", "folded", "free", "halves", "in the cache", "known",
    "memory", "mixed", "moved up", "names", "negative", "normal", "order", "part",
    "piece", "pieces", "place", "places", "point", "premature", "processed", "proved",
    "raw", "removed", "restricted", "round", "row", "samples", "setting", "shares",
    "size", "square", "stages", "turning", "ways", "weight", "within",
}  # fmt: skip
