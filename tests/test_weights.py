"""The .npz: mapped in place, readable by everyone, and hostile files refused."""

import dataclasses
import io
import json
import mmap
import os
import pickle
import shutil
import struct
import sys
import tracemalloc
import zipfile

import children
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import DISTINCT, configs, seeds

from npllama.config import config_to_hf
from npllama.files.checkpoint import STORED, load, save, widen
from npllama.files.npz import ALIGNMENT, read_npz, writing
from npllama.weights import LAYER_NAMES, check_shapes, tensor_shapes

every_dtype = pytest.mark.parametrize("dtype", STORED)


def random_tensors(config, dtype, seed=0):
    """Stored tensors of a model, as a dictionary: random numbers, no two alike."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        if dtype == "bfloat16":
            tensors[name] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
        else:
            tensors[name] = values.astype(dtype)
    return tensors


def saved(path, config=DISTINCT, dtype="float32", **more):
    """Save a random model; return its tensors."""
    tensors = random_tensors(config, dtype)
    save(path, config, tensors.items(), dtype=dtype, **more)
    return tensors


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.npz"
    saved(path)
    return path


# ---- what is saved is what is loaded ----------------------------------------------


@given(config=configs(), dtype=st.sampled_from([*STORED]), seed=seeds)
def test_a_saved_model_is_loaded_as_it_was(tmp_path_factory, config, dtype, seed):
    path = tmp_path_factory.mktemp("model") / "model.npz"
    tensors = random_tensors(config, dtype, seed)
    save(path, config, tensors.items(), dtype=dtype, files={"note.txt": b"hello"})
    archive, model = read_npz(path), load(path, "float64")
    assert archive.files["note.txt"] == b"hello"
    assert archive.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(archive.tensors[name], tensor)
    assert model.config == config
    for i, layer in enumerate(model.layers):
        for word, name in LAYER_NAMES.items():
            stored = tensors.get(f"model.layers.{i}.{name}")
            weight = getattr(layer, word)
            assert (stored is None) == (weight is None)
            if stored is not None:
                exact = widen(stored, dtype, "float64")
                np.testing.assert_array_equal(weight.reshape(exact.shape), exact)


@every_dtype
def test_numpy_and_unzip_read_the_file_too(tmp_path, dtype):
    path = tmp_path / "model.npz"
    tensors = saved(path, dtype=dtype)
    assert zipfile.ZipFile(path).testzip() is None
    with np.load(path) as archive:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(archive[name], tensor)
    if shutil.which("unzip"):
        children.run(["unzip", "-tq", path], check=True, capture_output=True)


@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_can_write_the_file_too(tmp_path, order):
    path = tmp_path / "model.npz"
    tensors = random_tensors(DISTINCT, "float32")
    np.savez(path, **{n: np.asarray(t, order=order) for n, t in tensors.items()})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", json.dumps(config_to_hf(DISTINCT)))
    model = load(path)
    np.testing.assert_array_equal(model.embed, tensors["model.embed_tokens.weight"])


@given(config=configs(), dtype=st.sampled_from([*STORED]))
def test_every_tensor_begins_on_a_boundary_of_64_bytes(tmp_path_factory, config, dtype):
    path = tmp_path_factory.mktemp("model") / "model.npz"
    saved(path, config, dtype)
    for tensor in read_npz(path).tensors.values():
        assert tensor.ctypes.data % ALIGNMENT == 0


def test_weights_are_views_of_the_file_and_cannot_be_changed(model_file):
    model = load(model_file)
    weights = [model.embed, model.norm, model.lm_head]
    weights += [w for layer in model.layers for w in layer if w is not None]
    for weight in weights:
        base = weight
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)
        with pytest.raises(ValueError, match="read-only"):
            weight[...] = 0


def test_loading_copies_nothing(tmp_path):
    path = tmp_path / "model.npz"
    saved(path, dataclasses.replace(DISTINCT, vocab_size=2**17))
    tracemalloc.start()
    model = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert model.embed.nbytes > 3e6 > 3e5 > peak


def test_a_tied_head_is_the_embedding_itself(tmp_path):
    path = tmp_path / "model.npz"
    config = dataclasses.replace(DISTINCT, tie_word_embeddings=True)
    for dtype in ("float32", "float16"):
        saved(path, config, dtype)
        model = load(path)
        assert model.lm_head is model.embed


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_all_65536_patterns_of_a_16_bit_float_are_widened_exactly(stored):
    bits = np.arange(2**16, dtype=np.uint16)
    outside = ml_dtypes.bfloat16 if stored == "bfloat16" else np.float16
    tensor = bits if stored == "bfloat16" else bits.view(np.float16)
    for dtype in ("float32", "float64"):
        with np.errstate(invalid="ignore"):
            expected = bits.view(outside).astype(dtype)
        np.testing.assert_array_equal(widen(tensor, stored, dtype), expected)


def test_equal_models_give_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        saved(tmp_path / name, metadata={"source": {"x": "1"}})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_where_the_weights_came_from_is_kept(tmp_path):
    path = tmp_path / "model.npz"
    saved(path, metadata={"source": {"model.safetensors": "00ff"}})
    about = json.loads(read_npz(path).files["npllama.json"])
    assert about == {"dtype": "float32", "source": {"model.safetensors": "00ff"}}


# ---- a failed save leaves nothing -------------------------------------------------


def swapped(tensors):
    """The same tensors, one of them transposed."""
    name = "model.layers.1.mlp.up_proj.weight"
    return tensors | {name: tensors[name].T}


FAULTS = [
    (lambda t: dict(list(t.items())[:-1]), "tensor lm_head.weight is missing"),
    (lambda t: t | {"extra": np.zeros(2, np.float32)}, "extra is not part"),
    (swapped, r"up_proj.weight has shape \(7, 11\).* \(11, 7\)"),
    (
        lambda t: t | {"lm_head.weight": np.zeros((13, 7))},
        "lm_head.* float64, not float32",
    ),
]


@pytest.mark.parametrize("fault, words", FAULTS)
def test_a_failed_save_leaves_the_old_file_and_nothing_beside_it(
    tmp_path, fault, words
):
    path = tmp_path / "model.npz"
    path.write_bytes(b"old")
    tensors = fault(random_tensors(DISTINCT, "float32"))
    with pytest.raises(ValueError, match=words):
        save(path, DISTINCT, tensors.items())
    assert os.listdir(tmp_path) == ["model.npz"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_save_leaves_nothing(tmp_path):
    def tensors():
        yield from list(random_tensors(DISTINCT, "float32").items())[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "model.npz", DISTINCT, tensors())
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_a_member_is_opened_is_not_hidden(tmp_path):
    # zipfile cannot close an archive while a member is open, and says so instead.
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "a.npz") as archive:
        member = archive.open("member", "w")
        member.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="limits are a matter of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = random_tensors(DISTINCT, "float32").items()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError):
            save(tmp_path / "model.npz", DISTINCT, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


# ---- files that are wrong -----------------------------------------------------------


def members_of(path):
    """Name and content of every member of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def npy(array, version=None, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version, **options)
    return file.getvalue()


def header_only(text):
    """A .npy member that is only a header, of any text."""
    content = text.encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content


class Exploding:
    """An object whose unpickling would leave a mark."""

    def __reduce__(self):
        return (exec, ("import os; os.environ['NPLLAMA_UNPICKLED'] = '1'",))


EMBED = "model.embed_tokens.weight.npy"
OBJECTS = npy(np.array([Exploding()]), allow_pickle=True)
CHANGES = {
    "a pickled object": ({EMBED: OBJECTS}, "dtype object is not one of"),
    "a pickle alone": ({EMBED: pickle.dumps(Exploding())}, "header cannot be read"),
    "integers": ({EMBED: npy(np.zeros((13, 7), np.int32))}, "is int32, not float32"),
    "another float": ({EMBED: npy(np.zeros((13, 7)))}, "is float64, not float32"),
    "the other byte order": ({EMBED: npy(np.zeros((13, 7), ">f4"))}, "not float32"),
    "a wrong shape": ({EMBED: npy(np.zeros((7, 13), np.float32))}, r"\(7, 13\)"),
    "an extra tensor": ({"more.npy": npy(np.zeros(3, "f4"))}, "more is not part"),
    "a path trick": ({"../../out.npy": npy(np.zeros(3, "f4"))}, "out is not part"),
    "a name of two lines": ({"a\nb.npy": npy(np.zeros(3, "f4"))}, r"'a\\nb.npy' is no"),
    "an empty member": ({EMBED: b""}, "header cannot be read"),
    "a shape that lies": (
        {EMBED: header_only("{'descr':'<f4','fortran_order':False,'shape':(9,9)}")},
        r"shape \(9, 9\) .* does not fill",
    ),
    "a shape beyond all bounds": (
        {EMBED: header_only(f"{{'descr':'<f4','fortran_order':False,'shape':({2**80},0)}}")},
        "embed_tokens",
    ),
    "a shape with holes": (
        {EMBED: header_only("{'descr':'<f4','fortran_order':False,'shape':(-1,-1)}")},
        "does not fill",
    ),
    "a header that is code": ({EMBED: header_only("__import__('os')")}, "header"),
    "a header that is deep": ({EMBED: header_only("(" * 9000)}, "header"),
    "a header with open quotes": ({EMBED: header_only("{'descr': '''")}, "header"),
    "no JSON": ({"config.json": b"{"}, "config.json: not valid JSON"),
    "no text": ({"config.json": b"\xff\xfe\xfd"}, "config.json: not valid JSON"),
    "deep JSON": ({"config.json": b"[" * 100_000}, "config.json: not valid JSON"),
    "no JSON object": ({"config.json": b"[]"}, "config.json: expected a JSON object"),
    "another kind of model": (
        {"config.json": b'{"model_type": "gpt2"}'},
        "only LlamaForCausalLM",
    ),
    "an unknown dtype": ({"npllama.json": b'{"dtype": "int4"}'}, "'int4' is not one"),
    "a dtype that is a list": ({"npllama.json": b'{"dtype": []}'}, r"\[\] is not one"),
    "a broken tokenizer": ({"tokenizer.model": b"\x00\x01"}, "tokenizer.model"),
    "a million layers": (
        {"config.json": json.dumps(config_to_hf(DISTINCT) | {"num_hidden_layers": 10**12})},
        "num_hidden_layers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change, words", CHANGES.values(), ids=CHANGES)
def test_a_file_with_one_thing_wrong_is_refused_with_one_line(
    model_file, change, words
):
    write_members(model_file, (members_of(model_file) | change).items())
    with pytest.raises(ValueError, match=words) as caught:
        load(model_file)
    assert str(caught.value).startswith(f"{model_file}: ")
    assert len(str(caught.value).splitlines()) == 1
    assert "NPLLAMA_UNPICKLED" not in os.environ


@pytest.mark.parametrize("name", ["config.json", EMBED, "model.norm.weight.npy"])
def test_a_missing_member_is_named(model_file, name):
    members = members_of(model_file)
    del members[name]
    write_members(model_file, members.items())
    with pytest.raises(ValueError, match=name.removesuffix(".npy")):
        load(model_file)


def test_a_name_that_stands_twice_is_refused(model_file):
    members = [*members_of(model_file).items()] * 2
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_members(model_file, members)
    with pytest.raises(ValueError, match="'config.json' occurs 2 times"):
        load(model_file)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused_and_never_unpacked(model_file, method):
    bomb = {"bomb.npy": bytes(50_000_000)}
    write_members(model_file, (members_of(model_file) | bomb).items(), method)
    assert model_file.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match="compressed"):
        load(model_file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_members_that_share_their_bytes_cannot_fill_the_memory(tmp_path):
    # Many entries of the directory point to the same bytes: small on disk, huge read.
    path = write_members(tmp_path / "model.npz", [("file0", bytes(100_000))])
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, count = data[start:end], 1000
    entries = b"".join(entry.replace(b"file0", b"f%04d" % i) for i in range(count))
    closing = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0
    )
    path.write_bytes(data[:start] + entries + closing)
    with pytest.raises(ValueError, match="members are larger than the file"):
        read_npz(path)


def cuts(path):
    """Where to cut a file: within and at the edges of everything it is made of."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
        directory = archive.start_dir
    edges = [0, offsets[0], offsets[2], offsets[-1], directory, len(data) - 22]
    return sorted(
        {e + step for e in edges for step in (0, 1, 29, 60) if e + step < len(data)}
    )


def test_a_file_cut_anywhere_is_refused(model_file):
    data = model_file.read_bytes()
    for length in cuts(model_file):
        model_file.write_bytes(data[:length])
        with pytest.raises(ValueError, match="model.npz: "):
            load(model_file)


def test_a_file_without_its_beginning_is_refused_or_whole(model_file):
    # zipfile forgives bytes missing in front by shifting every offset.
    data = model_file.read_bytes()
    for skip in (1, 64, 4000, len(data) // 2):
        model_file.write_bytes(data[skip:])
        with pytest.raises(ValueError, match="model.npz: "):
            load(model_file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "model.npz"
    saved(path)
    return path


@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 255), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
@example([(0.9999, 0, True)])
def test_any_bytes_changed_give_a_model_or_one_line(whole, edits):
    data = whole.read_bytes()
    damaged = bytearray(data)
    directory = data.index(b"PK\x01\x02")
    for where, byte, in_directory in edits:
        # Half of the damage goes to the directory, which decides about the rest.
        start = directory if in_directory else 0
        damaged[start + int(where * (len(data) - 1 - start))] = byte
    path = whole.with_name("damaged.npz")
    path.write_bytes(damaged)
    try:
        load(path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@given(text=st.text(st.characters(max_codepoint=255), max_size=80))
@example("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2")
@example("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,)}")
@example("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}")
@example("{'descr': '<f4', 'fortran_order': 2, 'shape': (True,)}")
@example("  {\n 0")
def test_any_array_header_gives_an_array_or_one_line(whole, text):
    path = whole.with_name("header.npz")
    write_members(path, [("x.npy", header_only(text))])
    try:
        read_npz(path)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    path = tmp_path / "model.npz"
    for content in (b"", b"hello", bytes(10_000), npy(np.zeros(5))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not an .npz file"):
            load(path)


def test_an_unknown_name_is_answered_with_the_shipped_models(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file nowhere"):
        load("nowhere")


def test_only_two_precisions_can_be_asked_for(model_file):
    with pytest.raises(ValueError, match="'float16'.*float32 or float64"):
        load(model_file, "float16")


# ---- names --------------------------------------------------------------------------


@given(configs())
def test_the_shapes_of_a_model_are_those_its_config_promises(config):
    shapes = tensor_shapes(config)
    check_shapes(config, shapes)
    assert ("lm_head.weight" in shapes) != config.tie_word_embeddings
    for name in shapes:
        with pytest.raises(ValueError, match=f"{name} is missing"):
            check_shapes(config, {n: s for n, s in shapes.items() if n != name})
        with pytest.raises(ValueError, match=f"{name} has shape"):
            check_shapes(config, shapes | {name: (*shapes[name], 1)})
    with pytest.raises(ValueError, match="more is not part"):
        check_shapes(config, shapes | {"more": (1,)})


def test_reading_weights_needs_no_more_than_numpy_and_the_tokenizers():
    code = "import sys, npllama; print(*sys.modules)"
    loaded = children.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "safetensors", "ml_dtypes", "tqdm"} & set(loaded)
