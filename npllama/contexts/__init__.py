"""Chapter 21: long texts and small memories.

`perplexity`  how much a text surprises a model: the yardstick of what follows
`states`      what a query found among some of its keys, and how that is put together
`tiles`       FlashAttention 1 and 2, tile by tile, and what they move
`splits`      Flash-Decoding: keys in splits of a fixed size
`prefixes`    keys that many queries share: cascade attention, and trees of guesses
`streaming`   a text without end in a cache that does not grow
`sinks`       a stream in one pass: what each position sees of it
`ring`        the same in a buffer that goes round
`eviction`    H2O and SnapKV: keep the keys that were looked at
`keeping`     a text that is written over such keys
`forgetting`  every way to forget, on one text
`sparse`      positions that look at some of those before them
`reading`     where a model lies in its file, and a thread that reads ahead
`storage`     weights larger than memory: layers are read while others compute
`offload`     what stays in memory, and how long the rest takes
`steady`      is a stream constant in memory and in time per token?
`ahead`       a draft that guesses on while the target is read
"""
