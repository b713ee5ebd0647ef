"""Chapter 22: fewer bits.

`grid`  rounding weights to a few values: scales, zero points, clipping
"""
