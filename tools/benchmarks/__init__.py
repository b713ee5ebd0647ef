"""What `tools/bench.py` is made of.

Every program that is timed lives in a process of its own, so that no two thread
pools meet: `processes` starts them and asks, `worker` answers inside, with
`programs` (npllama and its peers on a whole model) or `attention` (attention
alone).  `report` turns the answers into a table.

`worker`, `programs` and `attention` need nothing but NumPy and the program that
is timed, so that a peer may live in another Python.
"""
