"""Chapter 21: long texts and small memories.

`perplexity`  how much a text surprises a model: the yardstick of what follows
`streaming`   a text without end in a cache that does not grow
`sparse`      positions that look at some of those before them
`reading`     where a model lies in its file, and a thread that reads ahead
`storage`     weights larger than memory: layers are read while others compute
`offload`     what stays in memory, and how long the rest takes
`ahead`       a draft that guesses on while the target is read
"""
