"""Chapter 11: files.

`whole`        a file appears when it is whole
`ending`       signals that end a program let it put its files in order
`npz`          arrays in a file, used where they lie
`checkpoint`   one file that is the whole model
"""
