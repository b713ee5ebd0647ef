"""Other backends, run on the tokens of a golden trace: ``npllama golden candidate``.

Every backend is a module with a function `run` that takes a `Text` and what the backend
computes from, and yields (name, array) pairs: the names that ``npllama golden record``
gives, float32 arrays whatever the backend's dtype, batch axis first.  A backend that
shows only some tensors yields those; the comparison says which are missing.  Nothing of
a backend is imported before it is asked for.

    `text`                what a backend is given: weights, and tokens in steps
    `gguf_file`           a model as a file that llama.cpp reads
    `transformers_hooks`  every tensor, by hooks on an unmodified model
    `jax_llama`           every tensor, of a LLaMA on one page of JAX
    `llamacpp`            logits, through llama-cpp-python
    `onnx_graph`          logits, of an exported graph under ONNX Runtime
    `candidate`           run one of them, and write its tensors: the candidate
"""
