"""The command line, which stands outside the book: it may use all of it."""
