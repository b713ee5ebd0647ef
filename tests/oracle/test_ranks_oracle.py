"""Spectra of a model's heads are those that PyTorch finds."""

import numpy as np
import pytest
from needs import needs

import npllama
from npllama.compression.ranks import MATRICES, heads, read

torch = needs("torch")


@pytest.mark.parametrize("name", MATRICES)
def test_spectra_are_those_of_torch(name):
    model = npllama.load("stories")
    tokens = model.tokenizer.encode("Once there was a little dog. He ran to the park.")
    for one in list(heads(model, read(model, tokens)))[::7]:
        q, k, v, before, wq, wk = (torch.from_numpy(np.array(x)).double() for x in one)
        T, D = q.shape
        future = torch.ones(T, T).triu(1).bool()
        scores = (q.matmul(k.T) / D**0.5).masked_fill(future, -torch.inf)
        matrix = {
            "K before RoPE": before,
            "K": k,
            "K, mean removed": k - k.mean(dim=0),
            "V": v,
            "Q K'": q.matmul(k.T),
            "softmax, causal": scores.softmax(dim=1),
            "Wq' Wk": wq.matmul(wk.T),
        }[name]
        theirs = torch.linalg.svd(matrix, full_matrices=False).S.numpy()
        ours = MATRICES[name](one)
        n = min(len(ours), len(theirs))
        # Means and the softmax are float32.
        tolerance = (
            1e-10 if name not in ("K, mean removed", "softmax, causal") else 1e-5
        )
        np.testing.assert_allclose(ours[:n], theirs[:n], atol=tolerance * theirs[0])
        assert theirs[n:].max(initial=0) < 1e-10 * theirs[0]
