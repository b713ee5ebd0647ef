"""ONNX Runtime: the logits of an exported graph.

Graphs of language models share their names: they take ``input_ids`` and give
``logits``; most also take ``attention_mask`` and ``position_ids``.  With a cache they
take ``past_key_values.3.key`` and give ``present.3.key`` (B, K, S, D), and so on.  A
graph without one is given the whole text up to each step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from npllama.candidates.text import Named, Text

NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def empty_past(session, B: int) -> dict[str, np.ndarray]:
    """What a graph with a cache is given at first: keys and values of no positions."""
    past = {}
    for node in session.get_inputs():
        if node.name.startswith("past_key_values."):
            _, K, _, D = node.shape
            past[node.name] = np.zeros((B, K, 0, D), NUMPY[node.type])
    return past


def whole_inputs(session, tokens: np.ndarray, first: int) -> dict[str, np.ndarray]:
    """The inputs of a graph for tokens of which the first is at position `first`."""
    B, T = tokens.shape
    known = {
        "input_ids": tokens,
        "attention_mask": np.ones((B, first + T)),
        "position_ids": np.broadcast_to(np.arange(first, first + T), (B, T)),
    }
    given = {}
    for node in session.get_inputs():
        if node.name in known:
            given[node.name] = known[node.name].astype(NUMPY[node.type])
        elif not node.name.startswith("past_key_values."):
            raise ValueError(f"the graph asks for {node.name}, which no text has")
    return given


def run(path: Path, text: Text, dtype: str = "float32") -> Named:
    """The logits of an ``.onnx`` file, step by step, in the graph's own dtype.

    Yields
    ------
    (name, array) pairs, one per step

    Raises
    ------
    ValueError
        If the graph has no ``input_ids`` or ``logits``, or asks for something else.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [node.name for node in session.get_outputs()]
    inputs = [node.name for node in session.get_inputs()]
    if "input_ids" not in inputs or "logits" not in outputs:
        raise ValueError(
            f"{path}: takes {inputs} and gives {outputs}: no model of text"
        )
    past = empty_past(session, len(text.tokens))
    for step, tokens in text.pieces():
        if past:
            given = whole_inputs(session, tokens, step.first) | past
        else:
            given = whole_inputs(session, text.tokens[:, : step.end], 0)
        found = dict(zip(outputs, session.run(outputs, given)))
        past = {
            name: found[name.replace("past_key_values", "present")] for name in past
        }
        logits = found["logits"][:, -tokens.shape[1] :]
        yield f"{step.name}/lm_head", logits.astype(np.float32)
