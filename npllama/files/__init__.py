"""Chapter 11: files.

`whole`        a file appears when it is whole
`ending`       signals that end a program leave no half of a file
`npz`          arrays in a file, used in place
`packed`       a matrix in a few bits, multiplied without unpacking all of it
`checkpoint`   one file that is the whole model
"""
