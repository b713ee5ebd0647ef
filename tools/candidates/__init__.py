"""Other backends, run on the tokens of a golden trace, one module each.

Every module has a function `run` that takes a `Text` and what the backend computes
from, and yields (name, array) pairs: the names that ``npllama golden record`` gives,
float32 arrays whatever the backend's dtype, batch axis first.  A backend that shows
only some tensors yields those; the comparison says which are missing.
"""
