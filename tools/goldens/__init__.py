"""What other libraries answer, recorded so that the tests need none of them.

Every module here that has a `make(folder)` writes one golden file; the rest make
the inputs from seeds, for `make` and for the tests alike.  ``NEEDS`` names the
versions that were asked: another version may answer differently, and be right, but
then the tests would compare with something nobody has looked at.
"""

NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    # golden: {distribution: versions, any of which will do}
    "beam": {"transformers": ("5.23", "4.49")},
    "contrastive": {"transformers": ("4.49",)},
    "model": {"transformers": ("5.23",)},
    "model_configs": {"transformers": ("5.23", "4.49")},
    "model_llamacpp": {"llama-cpp-python": ("0.3",), "gguf": ("0.19",)},
    "sampling": {"transformers": ("5.23",)},
    "sampling_llamacpp": {"llama-cpp-python": ("0.3",)},
    "speculative": {"transformers": ("5.23",)},
}
