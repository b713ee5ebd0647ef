"""Chapter 15: one face for all of generation.

`limits`       what an option may be
`steps`        from an option to a function on distributions
`options`      what a user may ask for, a row per option
`pipeline`     the steps that are on, in the order of the rows
`task`         a prompt made ready
`strategies`   which strategy is asked for
`generate`     text in, text out
"""
