"""Chapter 10: text.

`tokenizer`    text to tokens and back
`vocabulary`   the files that a tokenizer is read from
`chat`         how a conversation becomes one text
"""
