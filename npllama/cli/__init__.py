"""The command line.  It is not a chapter of the book, and may use all chapters."""
