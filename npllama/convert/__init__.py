"""Chapter 12: any public LLaMA, from wherever it lies.

LLaMAs come in many formats.  Each is a section here: it finds the config and the
tensors of a checkpoint and gives the tensors Hugging Face's names, layout and
precision.  The last section writes them into one ``.npz``.

A reader looks at names and shapes only; a tensor's data is read when its turn
comes, so that a model larger than memory can be converted.

`source`       what every reader returns: a config, and tensors yet to be read
`safetensors`  a file of tensors: Hugging Face's own format
`pytorch`      a file of tensors: a pickled dictionary, read without running it
`packed`       numbers of a few bits, and the words that they are packed in
`layouts`      weights in 2 to 8 bits: GPTQ, AWQ, compressed-tensors
`hf`           a folder of Hugging Face: one such file, or shards and an index
`params`       Meta's ``params.json``: the numbers of a LLaMA in other words
`meta`         Meta's folder: model-parallel slices, put together
`llama2c`      the ``.bin`` of llama2.c, version 0
`gguf_file`    a file of llama.cpp: named values and tensors, most of them quantised
`gguf_text`    the tokenizer in such a file
`gguf`         such a file as a whole, or split
`adapter`      a LoRA, merged into the weights
`convert`      recognise, check, round, write

Extra ``[convert]``: gguf knows the quantised types, ml_dtypes rounds to bfloat16, tqdm
shows a progress bar.  The formats of PyTorch and Meta need torch.
"""
