"""Chapter 21: long texts and small memories.

`perplexity`  how much a text surprises a model: the yardstick of what follows
"""
