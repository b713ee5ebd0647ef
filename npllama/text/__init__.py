"""Chapter 10: text.

`tokenizer`    text to tokens and back
`settings`     the small files beside a tokenizer
`splits`       where a byte-level tokenizer cuts a text before it merges
`merges`       merging by rank
`byte_level`   vocabularies of bytes, merged by tiktoken
`pieces`       vocabularies of pieces, merged by SentencePiece
`borrowed`     all other kinds of tokenizer.json, through Hugging Face's library
`vocabulary`   the files that a tokenizer is read from
`forms`        the text around the messages of a conversation
`turns`        one turn of a conversation, as tokens
`rendering`    rendering a chat template, where it can do no harm
`chat`         how a conversation becomes one text
"""
