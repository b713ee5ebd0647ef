"""Packed weights give the numbers of the weights that they stand for."""

import json
import tracemalloc

import numpy as np
import pytest
from backend import random_model as sharp_model
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, random_model, seeds, token_ids
from test_golden_floor import golden
from test_weight import MATRICES, logits_of, narrowed
from tolerances import assert_close, assert_same, depth

from npllama.cli.info import of_file
from npllama.compression.grid import (
    KINDS,
    codebook_grid,
    find_grid,
    from_codes,
    nf4_points,
    to_codes,
)
from npllama.compression.packed import byte_table, pack, packed, per_byte, stored_scale
from npllama.contexts.reading import contents
from npllama.cost import FlopCounter
from npllama.files.checkpoint import load, save
from npllama.files.npz import read_npz, write_array, write_text, writing
from npllama.files.packed import Packed
from npllama.golden.compare import compare
from npllama.golden.diagnose import diagnose
from npllama.golden.faults import packed as rounded
from npllama.golden.floor import floor
from npllama.golden.scene import Scene
from npllama.golden.streamed import StreamedModel
from npllama.ops import multiply, rowwise
from npllama.weights import LAYER_NAMES

kinds = st.sampled_from([*KINDS, "nf4"])
groups = st.integers(1, 9) | st.sampled_from(["channel", "tensor"])


def exact_grid(w, bits, kind, group):
    """A grid whose scales float16 holds exactly."""
    if kind == "nf4":
        grid = codebook_grid(w, nf4_points(), group)
    else:
        grid = find_grid(w, bits, kind, group)
    scale = grid.scale.astype(np.float16)
    return grid._replace(scale=scale.astype(w.dtype))


def pack_matrix(w, bits, kind, group, shuffled=None, exact=True):
    """Packed; not `exact`: its scales are rounded after its codes were found."""
    grid = (exact_grid if exact else find_grid)(w, bits, kind, group)
    index = None
    if shuffled is not None and group != "tensor":
        # groups that do not stand side by side, as act-order makes them
        order = np.random.default_rng(shuffled).permutation(w.shape[1])
        grid = exact_grid(w[:, order], bits, kind, group)
        codes = to_codes(w[:, order], grid)
        back = np.argsort(order)
        index = (np.arange(w.shape[1]) // grid.group)[back]
        codes = codes[:, back]
    else:
        codes = to_codes(w, grid)
    return packed(codes, grid, index, "nf4", w.dtype.name)


def all_packed(model, bits, kind, group, shuffled=None, exact=True):
    """The same model with every matrix packed, the head too if it has its own."""

    def of(layer):
        new = {}
        for name in MATRICES:
            w = getattr(layer, name)
            flat = w.reshape(merged(name, w.shape))
            made = pack_matrix(flat, bits, kind, group, shuffled, exact)
            new[name] = made.reshape(w.shape)
        return layer._replace(**new)

    head = model.lm_head
    if head is not model.embed:
        head = pack_matrix(head, bits, kind, group, shuffled)
    return model._replace(layers=tuple(map(of, model.layers)), lm_head=head)


def dequantised(model):
    """The same model with an array for every packed weight."""

    def dense(w):
        return w if w is None or isinstance(w, np.ndarray) else np.asarray(w)

    layers = tuple(type(layer)(*map(dense, layer)) for layer in model.layers)
    return model._replace(layers=layers, lm_head=dense(model.lm_head))


# ---- by hand -------------------------------------------------------------------


def test_the_first_code_lies_in_the_lowest_bits():
    assert pack(np.array([[0xF, 0x2, 0x7]], dtype=np.uint8), 4).tolist() == [[0x2F, 7]]
    assert pack(np.array([[1, 2, 3, 0, 2]], dtype=np.uint8), 2).tolist() == [[57, 2]]
    assert pack(np.array([[200, 3]], dtype=np.uint8), 8).tolist() == [[200, 3]]
    table = byte_table(np.arange(16) - 8, 4)
    assert table[0x2F].tolist() == [7, -6] and table.dtype == np.float32


def test_a_row_by_hand():
    w = np.array([[-0.75, 0.25, 1.5, 0.0, 1.0]], dtype=np.float32)
    weight = pack_matrix(w, 2, "asymmetric", "channel")
    assert weight.scale.tolist() == [[0.75]] and weight.zero.tolist() == [[1]]
    assert weight.codes.tolist() == [[0b01_11_01_00, 2]]
    assert weight.dense().tolist() == [[-0.75, 0, 1.5, 0, 0.75]]
    a = np.array([[1, 10, 100, 1000, 10000]], dtype=np.float32)
    assert weight.times(a).tolist() == [[-0.75 + 150 + 7500]]
    assert weight.kept == ("uint2", 2 + 2 + 1)


def test_order_of_groups_by_hand():
    codes = np.array([[1, 2, 3, 0]], dtype=np.uint8)
    w = np.array([[1.0, 20.0, 3.0, 0.0]])
    grid = find_grid(w[:, [0, 2, 1, 3]], 2, group=2)
    weight = packed(codes, grid, np.array([0, 1, 0, 1]))
    assert weight.order.tolist() == [0, 2, 1, 3]
    assert weight.dense()[0] == pytest.approx([1, 2 * 20 / 3, 3, 0], rel=1e-3)
    assert weight.times(np.eye(4, dtype=np.float32))[:, 0].tolist() == (
        weight.dense()[0].tolist()
    )


def test_bits_of_the_table():
    w = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for group, alone, zeros in (
        (128, 4.125, 4.1875),
        (64, 4.25, 4.375),
        (32, 4.5, 4.75),
    ):
        for kind, bits in (("symmetric", alone), ("asymmetric", zeros)):
            weight = pack_matrix(w, 4, kind, group)
            assert weight.kept[1] * 8 / w.size == bits


def test_scales_that_float16_does_not_hold_stay_float32():
    assert stored_scale(np.array([[1.0]])).dtype == np.float16
    for scale in (1e-6, 1e5):
        assert stored_scale(np.array([[1.0, scale]])).dtype == np.float32


# ---- laws ----------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 8), seeds)
def test_the_table_unpacks_what_was_packed(C, S, bits, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (C, S), dtype=np.uint8)
    table = byte_table(np.arange(2**bits), bits)
    assert table.shape == (256, per_byte(bits))
    assert_same(table[pack(codes, bits)].reshape(C, -1)[:, :S].astype(np.uint8), codes)


@given(
    st.integers(1, 5), st.integers(1, 13), st.integers(2, 8), kinds, groups,
    st.none() | seeds, st.sampled_from(["float32", "float64"]), seeds,
)  # fmt: skip
@example(3, 7, 4, "asymmetric", 3, None, "float32", 0)
@example(3, 7, 4, "asymmetric", 3, 1, "float64", 0)
@example(3, 7, 4, "asymmetric", "tensor", None, "float32", 0)
def test_it_stands_for_the_values_of_its_codes(
    C, S, bits, kind, group, shuffled, dtype, seed
):
    bits = 4 if kind == "nf4" else bits
    w = np.random.default_rng(seed).standard_normal((C, S)).astype(dtype)
    weight = pack_matrix(w, bits, kind, group, shuffled)
    assert weight.dtype == dtype and weight.dense().dtype == dtype
    if shuffled is None or group == "tensor":
        grid = exact_grid(w, bits, kind, group)
        assert_same(weight.dense(), from_codes(to_codes(w, grid), grid))
    a = np.random.default_rng(seed).standard_normal((3, S)).astype(dtype)
    with rowwise():
        one = weight.times(a)
    assert one.dtype == dtype
    assert_close(one, a.dot(weight.dense().T), S, scale=10)


@given(
    configs(), st.integers(2, 8), kinds, groups, st.none() | seeds, st.booleans(), seeds
)
@example(DISTINCT, 4, "asymmetric", 3, 5, True, 0)
@example(DISTINCT, 4, "nf4", 4, None, True, 0)  # odd rows, whose last byte is half
def test_a_packed_model_gives_the_logits_of_what_it_stands_for(
    config, bits, kind, group, shuffled, exact, seed
):
    bits = 4 if kind == "nf4" else bits
    model = all_packed(random_model(config, seed), bits, kind, group, shuffled)
    other, tokens = dequantised(model), token_ids(config, seed, 2, 5)
    with rowwise(exact):
        one, two = logits_of(model, tokens), logits_of(other, tokens)
    assert one.dtype == np.float32
    if exact and shuffled is None:
        assert_same(one, two)
    else:
        assert_close(one, two, depth(config, 5), scale=1 + np.abs(two).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_that_only_fill_the_last_byte_change_no_bit(bits):
    chance = np.random.default_rng(bits)
    for S in range(1, 10):
        w = chance.standard_normal((5, S)).astype(np.float32)
        weight = pack_matrix(w, bits, "asymmetric", 2)
        a = chance.standard_normal((3, S)).astype(np.float32)
        with rowwise():
            assert_same(weight.times(a), multiply(a, weight.dense().T))


def test_blocks_are_those_of_plain_rows(monkeypatch):
    # more rows than a block: the bits are still those of the unpacked matrix
    w = np.random.default_rng(0).standard_normal((999, 1030)).astype(np.float32)
    weight = pack_matrix(w, 4, "asymmetric", 64)
    a = np.random.default_rng(1).standard_normal((3, 1030)).astype(np.float32)
    with rowwise():
        assert_same(weight.times(a), multiply(a, weight.dense().T))


@pytest.mark.parametrize("M", [1, 16])
def test_a_product_unpacks_little_at_once(M):
    # the whole matrix would take 32 MB
    codes = np.random.default_rng(0).integers(0, 256, (2048, 2048), dtype=np.uint8)
    scale, table = np.ones((2048, 64), np.float16), byte_table(np.arange(16), 4)
    weight = Packed("int4", 64, codes, scale, None, None, table, (2048, 4096))
    a = np.ones((M, 4096), dtype=np.float32)
    tracemalloc.start()
    try:
        weight.times(a)
        assert tracemalloc.get_traced_memory()[1] < 3e6
    finally:
        tracemalloc.stop()


def test_bytes_are_counted_as_they_are_kept():
    model = all_packed(random_model(DISTINCT, 0), 4, "symmetric", 3)
    with FlopCounter() as count:
        logits_of(model, token_ids(DISTINCT, 0, 1, 3))
    with FlopCounter() as plain:
        logits_of(dequantised(model), token_ids(DISTINCT, 0, 1, 3))
    weights = [getattr(layer, n) for layer in model.layers for n in MATRICES]
    kept = sum(w.kept[1] for w in [*weights, model.lm_head])
    assert count.total.bytes["int4"] == kept
    assert count.total.flops == plain.total.flops


def test_the_golden_reference_finds_a_packed_model_other_than_the_plain_one():
    model = sharp_model(1)
    exact, plain = golden(model), narrowed(model)
    floors = floor(exact, model, "float32")
    weights = all_packed(plain, 4, "asymmetric", 8)
    first = compare(exact, golden(weights), floors, "float32").first
    assert first.name == "prefill/model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_the_golden_reference_names_what_was_rounded_to_the_nearest(bits, kind):
    model = sharp_model(1)
    exact = golden(model, new=1)
    weights = all_packed(narrowed(model), bits, kind, 32, exact=False)
    found = golden(weights, new=1)
    prompt = {name: x for name, x in found.items() if name.startswith("prefill")}
    floors = floor(exact, model, "float32")
    result = compare(exact, prompt, floors, "float32")
    assert result.first.name == "prefill/model.layers.0.self_attn.q_proj"
    scene = Scene(exact, prompt, result.first, "float32", 2.0, model.config, model)
    finding = diagnose(scene)
    sign = "" if kind == "symmetric" else "u"
    assert finding.fault == "quantised" and finding.proved
    assert finding.text == (
        f"the weights are rounded to {sign}int{bits} as GPTQ's files, "
        "a scale per 32 numbers"
    )


def test_one_sided_groups_are_rounded_as_gptqs_files_have_them():
    w = np.abs(np.random.default_rng(0).standard_normal((3, 64)))
    for signed in (True, False):
        grid = find_grid(np.float32(w), 4, KINDS[signed], 32)
        weight = packed(to_codes(np.float32(w), grid), grid)
        assert_same(np.float32(rounded(w, 4, 32, signed)), weight.dense())


def test_info_tells_bits_and_bytes(saved):
    facts = of_file(str(saved[1]), check=True)["packed"]
    weights = [getattr(layer, n) for layer in saved[0].layers for n in MATRICES]
    kept = sum(w.kept[1] for w in [*weights, saved[0].lm_head])
    matrices = sum(int(np.prod(w.shape)) for w in [*weights, saved[0].lm_head])
    assert facts == {
        "uint4": f"15 matrices, {kept:,} bytes, {8 * kept / matrices:.2f} bits per weight"
    }
    assert "packed" not in of_file("stories", check=False)


# ---- in a file -----------------------------------------------------------------


def tensors_of(model):
    """Name on disk and tensor, heads merged."""
    yield "model.embed_tokens.weight", model.embed
    for i, layer in enumerate(model.layers):
        for word, name in LAYER_NAMES.items():
            w = getattr(layer, word)
            if w is not None:
                yield f"model.layers.{i}.{name}", w.reshape(merged(word, w.shape))
    yield "model.norm.weight", model.norm
    if model.lm_head is not model.embed:
        yield "lm_head.weight", model.lm_head


def merged(word, shape):
    """Shape of a weight without an axis for the heads."""
    if not word.startswith("w"):
        return (int(np.prod(shape)),)
    outputs = 2 if word in ("wq", "wk", "wv") else 1
    return int(np.prod(shape[:outputs])), int(np.prod(shape[outputs:]))


@pytest.fixture
def saved(tmp_path):
    model = all_packed(random_model(DISTINCT, 0), 4, "asymmetric", 3, shuffled=7)
    save(tmp_path / "m.npz", DISTINCT, tensors_of(model))
    return model, tmp_path / "m.npz"


def test_a_packed_file_loads_as_it_was_saved(saved):
    model, path = saved
    found, tokens = load(path), token_ids(DISTINCT, 0, 2, 5)
    assert_same(logits_of(found, tokens), logits_of(model, tokens))
    assert found.layers[0].wq.shape == model.layers[0].wq.shape
    # mapped, not copied
    assert not found.layers[0].wq.codes.flags.owndata
    assert load(path, "float64").layers[0].wq.dtype == np.float64
    with np.load(path) as plain:
        assert plain["model.layers.0.mlp.up_proj.weight.codes"].dtype == np.uint8
    streamed = StreamedModel(path, "float32")
    assert_same(streamed.layers[1].w_up.dense(), model.layers[1].w_up.dense())


def test_layers_on_storage_refuse_packed_weights(saved):
    with pytest.raises(ValueError, match="packed.*load"):
        contents(saved[1])


def rewritten(path, change):
    """The file with its arrays and its description changed."""
    archive = read_npz(path)
    tensors = {n: np.array(t) for n, t in archive.tensors.items()}
    about = json.loads(archive.files["npllama.json"])
    change(tensors, about)
    out = path.with_name("other.npz")
    with writing(out) as file:
        write_text(file, "config.json", archive.files["config.json"])
        write_text(file, "npllama.json", json.dumps(about))
        for name, tensor in tensors.items():
            write_array(file, name, tensor)
    return out


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, a: t.pop(f"{UP}.scale"), rf"{UP}.scale is missing"),
        (lambda t, a: t.pop(f"{UP}.codes"), rf"{UP}.codes is missing; expected uint8"),
        (
            lambda t, a: t.pop("table.uint4"),
            r"table.uint4 should be \(256, 1, 2 or 4\)",
        ),
        (
            lambda t, a: t.update({f"{UP}.codes": t[f"{UP}.codes"][:, 1:]}),
            r"codes is uint8 \(11, 3\); expected uint8 \(11, 4\)",
        ),
        (
            lambda t, a: t.update({f"{UP}.order": t[f"{UP}.order"] * 0}),
            "order does not name every input once",
        ),
        (
            lambda t, a: t.update({f"{UP}.zero": t[f"{UP}.zero"].astype(np.int8)}),
            "zero is int8",
        ),
        (lambda t, a: t.update({f"{UP}.more": t["model.norm.weight"]}), "not part of"),
        (lambda t, a: a["packed"].pop(UP), f"{UP} is missing"),
        (lambda t, a: a.update(packed=3), "expected a JSON object, found 3"),
        (lambda t, a: a["packed"].update({UP: 3}), "a format and a group from 1"),
        (
            lambda t, a: a["packed"][UP].update(group=0),
            "a format and a group from 1 are needed",
        ),
        (
            lambda t, a: a["packed"].update(
                {"model.embed_tokens.weight": a["packed"][UP]}
            ),
            "embed_tokens.weight is packed, and no matrix that is multiplied",
        ),
        (
            lambda t, a: t.update({UP: np.zeros((11, 7), dtype=np.float32)}),
            "packed, and there as it is, too",
        ),
    ],
)
def test_a_file_with_a_wrong_part_is_refused(saved, change, message):
    with pytest.raises(ValueError, match=message):
        load(rewritten(saved[1], change))


def test_what_cannot_be_packed_is_refused():
    w = np.ones((2, 6))
    grid = codebook_grid(w, nf4_points(), 3)
    with pytest.raises(ValueError, match="a codebook needs a name"):
        packed(to_codes(w, grid), grid)
    grid = find_grid(w, 4, group=3)
    with pytest.raises(ValueError, match="more or fewer inputs than 3"):
        packed(to_codes(w, grid), grid, np.array([0, 0, 0, 0, 1, 1]))
    weight = packed(to_codes(w, grid), grid)
    with pytest.raises(ValueError, match=r"\(2, 6\) cannot be \(5,\)"):
        weight.reshape(5)
    assert repr(weight) == "Packed(uint4, groups of 3, (2, 6))"


def test_rows_lie_without_gaps():
    # BLAS may sum in another order where rows are further apart than they are long
    for S in (6, 7):
        weight = pack_matrix(np.ones((3, S), dtype=np.float32), 4, "symmetric", 2)
        assert weight.rows(0, 3).flags.c_contiguous
