"""Readers of checkpoints: one small module for each format that LLaMAs come in.

`source`       what every reader returns: a config, and tensors yet to be read
`safetensors`  a file of tensors: Hugging Face's own format
`pytorch`      a file of tensors: a pickled dictionary, read without running it
`hf`           a folder of Hugging Face: one such file, or shards and an index
`meta`         Meta's folder: model-parallel slices and ``params.json``
`llama2c`      the ``.bin`` of llama2.c, version 0

A reader looks at names and shapes only; a tensor's data is read when its turn
comes, so that a model larger than memory can be converted.
"""
