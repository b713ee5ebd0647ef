"""Several cards, what fits on them, how far a program is from the roof, and curves."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllama.cli.main import main
from npllama.config import preset
from npllama.cost.cards import one_card, sent_elements
from npllama.cost.curves import curve
from npllama.cost.facts import Text, activation_bytes, room_facts
from npllama.cost.formulas import operators, parameters, total
from npllama.cost.hardware import HARDWARE
from npllama.cost.roofline import BYTES, Dtypes, dtypes, predict, token_bytes

LLAMA, H100 = preset("llama-2-70b"), HARDWARE["h100"]
HALF = Dtypes()


def told(capsys, *words):
    assert main(["roofline", "--config", "llama-2-7b", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


# ---- tensor parallelism ---------------------------------------------------------


@pytest.mark.parametrize("cards", [1, 2, 4, 8])
def test_cards_share_all_products_and_all_matrices(cards):
    mine = one_card(LLAMA, cards)
    for args in [(3, 50, 0), (2, 1, 700)]:
        whole = total(operators(LLAMA, *args)).flops
        assert cards * total(operators(mine, *args)).flops == whole
    whole, part = parameters(LLAMA), parameters(mine)
    assert part.pop("norms") == whole.pop("norms")  # each card holds these
    assert {name: cards * n for name, n in part.items()} == whole


def test_more_cards_than_key_heads_hold_copies():
    mine = one_card(LLAMA, 32)
    assert (mine.num_attention_heads, mine.num_key_value_heads) == (2, 1)
    assert mine.head_dim == LLAMA.head_dim and mine.hidden_size == LLAMA.hidden_size
    assert token_bytes(mine, HALF) == token_bytes(one_card(LLAMA, 8), HALF)


@pytest.mark.parametrize("cards", [3, 5, 6, 128])
def test_heads_that_cannot_be_shared_are_refused(cards):
    with pytest.raises(ValueError, match=f"{cards} cards cannot share 64 query heads"):
        one_card(LLAMA, cards)


def ring(parts):
    """Add up over a ring, chunk by chunk; return the sums and what each card sent."""
    n, sent = len(parts), np.zeros(len(parts), int)
    parts = [np.array_split(part.copy(), n) for part in parts]
    for step in range(2 * (n - 1)):
        grows = step < n - 1
        moving = [(card, (card - step) % n) for card in range(n)]
        chunks = [parts[card][chunk].copy() for card, chunk in moving]
        for (card, chunk), data in zip(moving, chunks):
            right = parts[(card + 1) % n]
            right[chunk] = right[chunk] + data if grows else data
            sent[card] += data.size
    return [np.concatenate(part) for part in parts], sent


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(1, 3))
def test_a_ring_sends_what_is_told(cards, positions, rows):
    config = one_card(LLAMA, cards)
    each = positions * config.hidden_size  # divisible by 8
    parts = [np.arange(each) + card for card in range(cards)]
    sums, sent = ring(parts)
    assert all(np.array_equal(got, sum(parts)) for got in sums)
    times = 2 * config.num_hidden_layers + 1
    logits = (cards - 1) * rows * config.vocab_size
    expected = times * sent[0] + logits
    assert sent_elements(config, cards, positions, rows) == expected
    assert set(sent) == {sent[0]}


def test_a_slow_link_is_the_bound():
    config = one_card(LLAMA, 8)
    fast, slow = (
        predict(config, H100._replace(cards=8, link=link), 1, 512, 64, HALF)
        for link in (450e9, 1e9)
    )
    talk = slow.prefill.operators[-1]
    assert talk.name == "between cards" and talk.bound == "link" == slow.prefill.bound
    assert talk.bytes == 2 * sent_elements(config, 8, 512, 1)
    assert talk.seconds == talk.bytes / 1e9
    without = slow.seconds - fast.seconds
    assert without > 0 and fast.prefill.bound == "compute"
    passes = 64
    assert slow.decode.operators[-1].bytes == 2 * sent_elements(config, 8, 1, 1)
    bytes_ = talk.bytes + (passes - 1) * slow.decode.operators[-1].bytes
    assert without == pytest.approx(bytes_ / 1e9 - bytes_ / 450e9)


def test_cards_on_the_command_line(capsys):
    one, two = told(capsys, "--hardware", "h100"), None
    two = told(capsys, "--hardware", "h100", "--cards", "2")
    assert two["weights, GB"] == pytest.approx(one["weights, GB"] / 2, rel=1e-3)
    assert one["decode, tokens/s"] < two["decode, tokens/s"]
    assert two["decode, tokens/s"] < 2 * one["decode, tokens/s"]
    wrong = {
        "--hardware h100 --cards 3": "cannot share",
        "--hardware h100 --cards 0": "must be 1 to",
        "--tflops 100 --bandwidth 100 --cards 2": "give --link",
        "--hardware h100 --mfu 0": "above 0, to 1",
        "--hardware h100 --mbu 1.5": "above 0, to 1",
        "--hardware h100 --mbu nan": "above 0, to 1",
        "--hardware h100 --reserve -1": "must be 0 to",
        "--hardware h100 --group-size 0": "must be 1 to",
    }
    for words, message in wrong.items():
        asked = ["roofline", "--config", "llama-2-7b", *words.split()]
        assert main(asked) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


# ---- what fits, and how near a program comes ----------------------------------------


@pytest.mark.parametrize("group, bits", [(None, 4), (128, 4.15625), (32, 4.625)])
def test_weights_in_groups_take_their_scales_along(group, bits):
    """A scale of 16 bits and a zero of 4: AutoGPTQ's format."""
    assert dtypes("int4", group=group).sizes()[0] * 8 == bits


def test_keys_are_written_in_the_dtype_of_the_cache():
    """With a cache of 8 bits, a new key is written in 8, and its input read in 16."""
    config = preset("llama-2-7b")
    step = predict(config, H100, 1, 512, 2, Dtypes("fp16", "int8", "fp16")).decode
    (k,) = (op for op in step.operators if op.name == "k_proj")
    E, L = config.hidden_size, config.num_hidden_layers
    assert k.bytes == L * (2 * E * E + 2 * E + 1 * E)


def test_activations_and_a_reserve_take_their_room():
    text, config = Text(1, 512, 128), preset("llama-2-7b")
    facts = room_facts(config, H100, HALF, text, 3e9)
    bare, left = (
        facts["positions that fit beside the weights"],
        facts["and beside activations and reserve"],
    )
    taken = 3e9 + activation_bytes(config, HALF, text)
    assert abs((bare - left) - taken / token_bytes(config, HALF)) <= 1
    assert facts["rows of this text that fit"] == left // 639


def test_utilisation_slows_what_it_bounds(capsys):
    full = told(capsys, "--hardware", "a100-80g")
    slow = told(capsys, "--hardware", "a100-80g", "--mfu", "0.5", "--mbu", "0.5")
    for name in ("time to first token, s", "time per token, s"):
        assert slow[name] == pytest.approx(2 * full[name])
    half = told(capsys, "--hardware", "a100-80g", "--mbu", "0.5")
    assert half["time per token, s"] == pytest.approx(slow["time per token, s"])
    assert half["time to first token, s"] < slow["time to first token, s"]


def test_published_speed_of_fp8_stays_under_its_roof(capsys):
    """TensorRT-LLM publishes 2,244 tokens/s for 7B in fp8 on an H100, 80 rows."""
    kinds = ["--weights-dtype", "fp8", "--cache-dtype", "fp8"]
    kinds += ["--activations-dtype", "fp8", "--prompt", "2048", "--new-tokens", "128"]
    roof = told(capsys, "--hardware", "h100", *kinds, "--batch", "80")
    assert 2244 < 80 * 128 / roof["the whole text, s"] < 2 * 2244


# ---- curves -------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["batch", "context"])
def test_a_curve_ends_where_nothing_fits_any_more(over):
    config = preset("llama-2-7b")
    points = curve(config, H100, HALF, Text(1, 512, 128), "fused", over)
    sizes = [getattr(p, over) for p in points]
    assert all(b == 2 * a for a, b in zip(sizes, sizes[1:]))
    assert [p.fits for p in points] == [True] * (len(points) - 1) + [False]
    one = predict(config, H100, points[2].batch, points[2].context, 128, HALF, "fused")
    assert points[2].step == one.per_token and points[2].rate == one.decode.rate
    steps = [p.step for p in points]
    assert steps == sorted(steps)


def test_a_curve_over_anything_else_is_refused():
    with pytest.raises(ValueError, match="over 'prompt': batch or context"):
        curve(preset("llama-2-7b"), H100, HALF, Text(1, 512, 128), "fused", "prompt")


def test_a_curve_is_printed_and_in_json(capsys):
    asked = ["roofline", "--config", "llama-2-7b", "--hardware", "a100-80g"]
    assert main([*asked, "--over", "batch"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[:2] == ["rows", "context"] and "DOES NOT FIT" in rows[-1]
    assert main([*asked, "--over", "batch", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert len(points) == len(rows) - 1
    assert [int(row.split()[0].replace(",", "")) for row in rows[1:]] == [
        p["batch"] for p in points
    ]


def test_shares_of_time_add_up(capsys):
    assert main(["roofline", "--config", "llama-2-7b", "--hardware", "t4"]) == 0
    prefill, decode = capsys.readouterr().out.split("\n\n")[1:3]
    for table in (prefill, decode):
        shares = [
            float(row.split("%")[0].split()[-1]) for row in table.splitlines()[2:]
        ]
        assert math.isclose(sum(shares[:-1]), 100, abs_tol=0.6) and shares[-1] == 100


def test_no_dtype_is_forgotten():
    assert set(BYTES) == {"fp32", "fp16", "bf16", "int8", "int4", "fp8"}
