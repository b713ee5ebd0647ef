"""Chapter 20: many at once.

`packed`   one pass over pieces of several texts
`saved`    a cache that outlives its request
"""
