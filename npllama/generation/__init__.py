"""Chapter 15: one interface to all of generation.

`limits`       the values that an option may have
`steps`        how each option acts on a distribution
`options`      all options of generation, a row for each
`wishes`       what a checkpoint's makers wish
`pipeline`     the steps that are on, in the order of the rows
`task`         from a prompt to a job
`strategies`   from a config to a strategy
`generate`     text in, text out
"""
