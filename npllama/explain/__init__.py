"""One generation from inside, as a page for a browser.

It is not a chapter, and may use all chapters.  Nothing is computed a second time: the
text is written by `generate` itself, and observers see what happens on the way.

`watch`    what observers see of a generation, in order
`choices`  one distribution after every step of the pipeline, and the draw
`layers`   attention of the whole text, and what each layer would have said
`search`   beams: the tree, and the way to the text that won
`collect`  all of it, put together by token
`told`     the same as plain data, for the page
`page`     the page; its program is ``page.js``, its style ``page.css``
`served`   the page as a server shows it; needs ``[serve]``
"""
