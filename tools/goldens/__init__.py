"""What other libraries answer, recorded so that the tests need none of them.

Every module here that has a `make(folder)` writes one golden file; the rest make
the inputs from seeds, for `make` and for the tests alike.  ``NEEDS`` names the
versions that were asked: another version may answer differently, and be right, but
then the tests would compare with something nobody has looked at.
"""

TORCH = {"torch": ("2.13",)}
NEW, OLD = ("5.23",), ("4.49",)  # transformers
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    # golden: {distribution: versions, any of which will do}
    "ant_olive": TORCH,
    "beam": {"transformers": NEW + OLD, **TORCH},
    "chat": {"transformers": NEW, "jinja2": ("3.1",)},
    "conformance": {},
    "conformance_llamacpp": {"llama-cpp-python": ("0.3",)},
    "conformance_transformers": {"transformers": NEW, **TORCH},
    "contrastive": {"transformers": OLD, **TORCH},
    "flops": {"transformers": NEW, **TORCH},
    "folds": {"autoawq": ("0.2",), "transformers": NEW, **TORCH},
    "gptq": {"auto-gptq": ("0.7",), "gptqmodel": ("7.7",), **TORCH},
    "kv_cache": {"gguf": ("0.19",), **TORCH},
    "lora": {"peft": ("0.21",), "transformers": NEW, **TORCH},
    "model": {"transformers": NEW, **TORCH},
    "model_configs": {"transformers": NEW + OLD},
    "model_llamacpp": {"llama-cpp-python": ("0.3",), "gguf": ("0.19",)},
    "packed": {"autoawq": ("0.2",), "compressed-tensors": ("0.20",), **TORCH},
    "packed_gptq": {"gptqmodel": ("7.7",), **TORCH},
    "packed_ours": {"gptqmodel": ("7.7",), **TORCH},
    "sampling": {"transformers": NEW, **TORCH},
    "sampling_llamacpp": {"llama-cpp-python": ("0.3",)},
    "speculative": {"transformers": NEW, **TORCH},
    "splits": {"tokenizers": ("0.23",)},
    "streams_llamacpp": {"llama-cpp-python": ("0.3",), "gguf": ("0.19",)},
    "tokenizer": {"transformers": NEW, "sentencepiece": ("0.2",)},
}
