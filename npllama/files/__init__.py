"""Chapter 11: files.

`npz`          arrays in a file, used where they lie
`checkpoint`   one file that is the whole model
"""
