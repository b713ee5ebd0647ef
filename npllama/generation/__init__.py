"""Chapter 15: one face for all of generation.

`limits`       what an option may be
`options`      what a user may ask for
`pipeline`     from options to the one function that shapes distributions
`task`         a prompt made ready
`strategies`   which strategy is asked for
`generate`     text in, text out
"""
