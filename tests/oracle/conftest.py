"""Tests beside torch and transformers, both running; skipped where they are not."""

try:
    import torch
    from transformers.utils import logging
except ImportError:
    pass
else:
    # Of models this small, more threads only wait for each other.
    torch.set_num_threads(1)
    logging.set_verbosity_error()
