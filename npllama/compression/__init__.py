"""Chapter 22: fewer bits.

`grid`    rounding weights to a few values: scales, zero points, clipping
`packed`  codes, two to a byte, and the table that unpacks them
`gptq`    rounding one column, and letting the others make up for it
"""
