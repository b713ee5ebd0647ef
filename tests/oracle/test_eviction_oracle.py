"""Keys that SnapKV and H2O keep, beside torch's operations as their codes use them."""

import numpy as np
import pytest
from needs import needs
from strategies import normal

from npllama.contexts.eviction import heaviest, pooled, weights_of

torch = needs("torch")


def theirs(q, k, window):
    """Attention of the last queries, as SnapKV's code has it: heads repeated, one sum."""
    H, K, S = q.shape[1], k.shape[0], k.shape[1]
    keys = torch.tensor(k).repeat_interleave(H // K, dim=0)  # (H, S, D)
    queries = torch.tensor(q[-window:]).transpose(0, 1)  # (H, w, D)
    scores = queries @ keys.transpose(1, 2) / np.sqrt(q.shape[2])
    ahead = torch.full((window, window), -np.inf, dtype=scores.dtype).triu(1)
    scores[:, :, -window:] += ahead
    weights = torch.softmax(scores, dim=-1)
    return weights.sum(dim=1).reshape(K, H // K, S).sum(dim=1)  # a group is one


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("kernel", [5, 7])
def test_snapkv_keeps_what_torch_pools_and_ranks_highest(how, kernel):
    S, window, capacity = 60, 8, 24
    q, k = normal(1, S, 6, 8), normal(2, 3, S, 8)
    expected = theirs(q, k, window)
    weight = weights_of(q[-window:], k, S - window)
    assert np.allclose(weight, expected.numpy())
    pool = {"mean": torch.nn.functional.avg_pool1d,
            "max": torch.nn.functional.max_pool1d}[how]  # fmt: skip
    prefix = expected[:, :-window]
    around = pool(prefix[None], kernel, stride=1, padding=kernel // 2)[0]
    assert np.allclose(pooled(weight[:, :-window], kernel, how), around.numpy())
    if how == "mean":  # a maximum has ties, among which topk chooses as it likes
        kept = around.topk(capacity - window, dim=-1).indices.sort(dim=-1).values
        found = heaviest(around.numpy(), capacity - window, 0)
        assert np.array_equal(found, kept.numpy())


def test_h2os_heavy_hitters_are_the_top_of_accumulated_attention():
    S, heavy, recent = 40, 9, 7
    q, k = normal(3, S, 6, 8), normal(4, 3, S, 8)
    expected = theirs(q, k, S)  # every query of the prompt
    weight = weights_of(q, k, 0)
    assert np.allclose(weight, expected.numpy())
    top = expected[:, : S - recent].topk(heavy, dim=-1).indices.sort(dim=-1).values
    found = heaviest(weight, heavy, recent)
    assert np.array_equal(found[:, :heavy], top.numpy())
    assert np.array_equal(found[:, heavy:], np.tile(np.arange(S - recent, S), (3, 1)))
