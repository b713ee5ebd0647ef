"""Chapter 22: fewer bits.

`grid`           rounding weights to a few values: scales, zero points, clipping
`packed`         codes, two to a byte, and the table that unpacks them
`gptq`           rounding one column, and letting the others make up for it
`ant`            the bits say which numbers; every matrix chooses a kind
`olive`          an outlier takes the place of its neighbour
`calibrate`      what goes into each matrix when the model reads real text
`folds`          scales moved from activations into weights; AWQ and SmoothQuant
`quality`        what rounding did to a model: divergence, agreement, surprise
`quantize`       a whole model in few bits, block by block
`folder`         the result in GPTQ's layout, for other programs
`table`          bits against quality, bytes and speed, by a command
`kv_rounding`    keys and values in a few bits: what shares a scale
`kv_cache`       a cache in fewer bits: all positions are rounded but the last ones
`kv_texts`       texts over such a cache: written, read, and what they lose
`ranks`          in how many directions keys, values and attention lie
`factored_keys`  r numbers per key instead of D
`adapters`       LoRA beside weights that stay as they are, another for every text

In chapters on weights, S counts a matrix's inputs, C its outputs, and H is X X' up to a
factor, where ' is the transpose.
"""
