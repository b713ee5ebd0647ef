"""The book: the package as pages to be read in a browser, made from its source.

It is not a chapter, and may use all chapters.  Nothing is written twice: prose comes
from docstrings and the READMEs, code from the files, exercises from the tests, and
pictures are computed from a model that ships.

`contents`   which pages there are, in the order of the title page
`names`      where every name is defined
`listing`    code: coloured, its names linked
`prose`      docstrings and READMEs: Markdown, mathematics, parameters
`shapes`     the sizes that shape comments had when the tests ran them
`exercises`  laws, and what would go wrong without them
`style`      colours that all pages share
`svg`        shapes and axes of a picture
`figures`    pictures of Part I
`choices`    pictures of sampling and decoding
`costs`      pictures of cost, precision and memory
`tiling`     FlashAttention's tiles, in the order in which they meet
`pictures`   which chapter has which picture
`page`       one page
`build`      all of them

Extra ``[book]``: Pygments, markdown-it-py, mdit-py-plugins, latex2mathml.
"""
