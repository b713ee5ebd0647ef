"""Chapter 21: long texts and small memories.

`perplexity`  how much a text surprises a model: the yardstick of what follows
`streaming`   a text without end in a cache that does not grow
`sparse`      positions that look at some of those before them
"""
