"""Chapter 22: fewer bits.

`grid`  rounding weights to a few values: scales, zero points, clipping
`gptq`  rounding one column, and letting the others make up for it
"""
