"""Chapter 10: text.

`tokenizer`    text to tokens and back
`settings`     what the small files beside a tokenizer say
`splits`       where a byte-level tokenizer cuts a text before it merges
`merges`       merging by rank
`byte_level`   vocabularies of bytes, merged by tiktoken
`pieces`       vocabularies of pieces, merged by SentencePiece
`borrowed`     whatever else a tokenizer.json says, through Hugging Face's library
`vocabulary`   the files that a tokenizer is read from
`forms`        what stands around the messages of a conversation
`turns`        one turn of a conversation, as tokens
`rendering`    a chat template, rendered where it can do no harm
`chat`         how a conversation becomes one text
"""
