"""Files from anywhere: a verdict or one line, through the command line as well."""

import json
import os
import struct
import tracemalloc
import zipfile
import zlib
from io import BytesIO

import numpy as np
import pytest
from profiles import THOROUGH
from strategies import DISTINCT, random_model
from test_golden_record import called

from npllama.files.npz import Reading
from npllama.golden.record import Wanted, record
from npllama.golden.trace import META, read_golden, read_trace

KEPT = ("model.layers.0.*_proj", "model.layers.1.output", "lm_head", "cache.k")


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A small golden trace: its arrays, and its description."""
    path = tmp_path_factory.mktemp("golden") / "g.npz"
    model = random_model(DISTINCT, 0, "float64")
    record(model, [[1, 5, 9]], path, Wanted(1, KEPT, floors=("float32",)))
    return dict(read_golden(path).tensors), read_golden(path).meta


def zipped(arrays, meta):
    """The bytes of a trace."""
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(META, meta if isinstance(meta, str) else json.dumps(meta))
    return buffer.getvalue()


# ---- at random --------------------------------------------------------------

VALUES = [None, True, -1, 0, 3, 10**30, 1e308, float("nan"), float("inf"), "", "half"]
VALUES += ["interleaved", "bfloat16", "\ud800", "a\nb", [], [[]], {}, {"": []}]
VALUES += [{"prefill/lm_head": "bfloat16"}, {"float32": {"lm_head": {"rms": 1}}}]
NAMES = [
    "lm_head",
    "prefill/",
    "/",
    "decode.99/lm_head",
    "prefill/model.layers.9.output",
]
NAMES += ["tokens", "u", "cache.k", "prefill/model.layers.0.self_attn.scores", "decode"]
DTYPES = ["<f4", ">f8", "<f2", "<u2", "|i1", "<i8", "|b1", "<c16", "<U3", "<M8[s]"]


def other_meta(meta, rng):
    """The description with one value changed, somewhere in it."""
    meta = at = json.loads(json.dumps(meta))
    while True:
        key = list(at)[rng.integers(len(at))]
        deeper = isinstance(at[key], dict) and at[key] and rng.random() < 0.7
        if not deeper:
            break
        at = at[key]
    if rng.random() < 0.2:
        del at[key]
    else:
        at[key] = VALUES[rng.integers(len(VALUES))]
    return meta


def other_array(x, rng):
    """An array that is wrong in shape, dtype or numbers."""
    kind = rng.integers(5)
    if kind == 0:
        return x.reshape(-1)[: int(rng.integers(x.size + 1))]
    if kind == 1:
        return x.reshape((1,) * int(rng.integers(9)) + x.shape)
    if kind == 2:
        with np.errstate(all="ignore"):
            return x.astype(DTYPES[rng.integers(len(DTYPES))])
    if kind == 3:
        return np.asarray(np.ravel(x)[0])
    return np.full_like(x, rng.choice([0, -1, 100]) if x.dtype.kind in "iu" else np.nan)


def other_bytes(data, rng):
    """A file with some bytes changed, most of them in its directory, or cut off."""
    out, first = bytearray(data), data.index(b"PK\x01\x02")
    for _ in range(int(rng.integers(1, 6))):
        start = 0 if rng.random() < 0.3 else first
        out[rng.integers(start, len(out))] = rng.choice([0, 1, 255, rng.integers(256)])
    return bytes(out[: rng.integers(len(out))] if rng.random() < 0.2 else out)


def hostile(arrays, meta, rng):
    """The bytes of a trace, damaged in one to three ways."""
    arrays, again = dict(arrays), None
    for kind in rng.integers(4, size=rng.integers(1, 4)):
        name = list(arrays)[rng.integers(len(arrays))]
        if kind == 0:
            meta = other_meta(meta, rng)
        elif kind == 1:
            arrays[name] = other_array(arrays[name], rng)
        elif kind == 2:
            other = NAMES[rng.integers(len(NAMES))]
            again = {**arrays, other: arrays[name]}
            arrays = again if rng.random() < 0.5 else arrays
        else:
            return other_bytes(zipped(arrays, meta), rng)
    # Half of the time the description agrees with what is there.
    if isinstance(meta, dict) and rng.random() < 0.5:
        meta = meta | {"shapes": {n: list(a.shape) for n, a in arrays.items()}}
    return zipped(arrays, meta)


@pytest.mark.slow
def test_no_file_makes_the_command_stumble(members, tmp_path, capsys):
    arrays, meta = members
    paths = [str(tmp_path / name) for name in ("golden.npz", "candidate.npz")]
    right = zipped(arrays, meta)
    rng = np.random.default_rng(0)
    codes = {0: 0, 1: 0, 2: 0}
    for i in range(10_000 if THOROUGH else 150):
        content = [right, right]
        content[i % 2] = hostile(arrays, meta, rng)
        for path, data in zip(paths, content):
            with open(path, "wb") as file:
                file.write(data)
        with np.errstate(all="ignore"):
            code, out, err = called(capsys, "golden", "compare", *paths)
        assert len(err.splitlines()) == (code == 2), (i, code, err)
        assert bool(out) == (code != 2)
        codes[code] += 1
    assert min(codes.values()) > 5


# ---- on purpose -------------------------------------------------------------


def member(name, data, size=None, compressed=False, at=None):
    """A local header with its data, and the entry of the directory that points there."""
    body = zlib.compress(data)[2:-4] if compressed else data
    method, size = 8 if compressed else 0, len(data) if size is None else size
    fields = struct.pack(
        "<HHHHHIIIHH",
        20,
        0,
        method,
        0,
        33,
        zlib.crc32(data),
        len(body),
        size,
        len(name),
        0,
    )
    local = b"PK\x03\x04" + fields + name + body

    def entry(offset):
        more = struct.pack("<HHHII", 0, 0, 0, 0, offset if at is None else at)
        return b"PK\x01\x02\x14\x00" + fields + more + name

    return local, entry


def archive(*parts):
    """A zip file of such members."""
    body, directory = b"", b""
    for local, entry in parts:
        directory += entry(len(body))
        body += local
    n = len(parts)
    end = struct.pack("<HHHHIIH", 0, 0, n, n, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def npy(header, data=b""):
    """An array file with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


ONE = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8))
HUGE = npy(
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693952,), }"
)
WRAPS = npy(
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"
)
TRUE = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 1, 2)}", bytes(16))
TRUE_EMPTY = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (False, 3)}")
ODD_SHAPES = ["(1.0,)", "('1',)", "(None,)", "(-1,)", "[1]", "(2**70,)", "1"]
OBJECT = npy(
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n"
)
CALL = npy("{'descr': __import__('os').system('true'), 'shape': (1,)}", bytes(8))
DEEP = npy("(" * 9000)
BOMB = archive(member(b"prefill/lm_head.npy", bytes(2**26), compressed=True))
TWICE = [member(b"prefill/lm_head.npy", ONE)] * 2
LONG = npy("{'descr': '|i1', 'fortran_order': False, 'shape': (9999,), }", bytes(9999))
SHARED = [member(b"%d.npy" % i, LONG, at=0) for i in range(9)]
SHARED = SHARED[:1] + [(b"", entry) for _, entry in SHARED[1:]]
WIDE = '{"a":' + "[[],[]" + ",[]" * 2**24 + "]}"

FILES = {
    "nothing": b"",
    "text": b"not a zip",
    "only an end": b"PK\x05\x06" + bytes(18),
    "a bomb": BOMB,
    "a description that unpacks": archive(
        member(META.encode(), b"{}" + b" " * 2**26, compressed=True)
    ),
    "a description that swells in memory": archive(
        member(META.encode(), WIDE.encode())
    ),
    "more than the file": archive(member(b"a.npy", ONE, size=2**31)),
    "the same name twice": archive(*TWICE),
    "members on one another": archive(*SHARED),
    "an array of exabytes": archive(member(b"a.npy", HUGE)),
    "a size that wraps around": archive(member(b"a.npy", WRAPS)),
    "a shape that is true": archive(member(b"prefill/lm_head.npy", TRUE)),
    "a shape that is true, and empty": archive(member(b"a.npy", TRUE_EMPTY)),
    "a checksum of other bytes": archive(member(b"a.npy", ONE)).replace(
        bytes(8) + b"PK", bytes(7) + b"\1PK"
    ),
    "another name in its header": archive(member(b"a.npy", ONE)).replace(
        b"a.npy", b"b.npy", 1
    ),
    "compressed bytes that are none": archive(
        member(b"a.npy", ONE * 9, compressed=True)
    ).replace(b"NUMPY", b"NUMPX"),
    "more compressed than it says": archive(
        member(b"a.npy", bytes(2**20), size=10, compressed=True)
    ),
    "more terabytes than there are": archive(
        member(b"a.npy", bytes(2**20), size=2**32 - 2, compressed=True)
    ),
    "a pickle": archive(member(b"a.npy", OBJECT)),
    "a call": archive(member(b"a.npy", CALL)),
    "a deep header": archive(member(b"a.npy", DEEP)),
    "a way out": archive(member(b"../../a.npy", ONE)),
    "a root": archive(member(b"/a.npy", ONE)),
    "a name of two lines": archive(member(b"a\nb.npy", ONE)),
} | {
    f"the shape {shape}": archive(
        member(
            b"prefill/lm_head.npy",
            npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}"),
        )
    )
    for shape in ODD_SHAPES
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_hostile_file_is_one_line_and_exit_code_two(
    members, tmp_path, capsys, data, monkeypatch
):
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("code was run"))
    evil, good = tmp_path / "evil.npz", tmp_path / "good.npz"
    evil.write_bytes(data)
    good.write_bytes(zipped(*members))
    tracemalloc.start()
    for pair in ((evil, good), (good, evil)):
        code, out, err = called(capsys, "golden", "compare", *map(str, pair))
        assert code == 2 and not out and len(err.splitlines()) == 1
        assert "evil.npz" in err
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    with pytest.raises(ValueError, match="evil.npz"):
        read_trace(evil)


def test_a_pipe_is_not_waited_for_and_a_report_replaces_no_trace(
    members, tmp_path, capsys
):
    good, pipe = tmp_path / "good.npz", tmp_path / "pipe"
    right = zipped(*members)  # once: the time stands in it
    good.write_bytes(right)
    os.mkfifo(pipe)
    for words in (
        (good, pipe),
        (good, good, "--html", good),
        (good, good, "--html", pipe),
    ):
        code, out, err = called(capsys, "golden", "compare", *map(str, words))
        assert code == 2 and not out and len(err.splitlines()) == 1
    assert good.read_bytes() == right and pipe.is_fifo()


# ---- one bit ----------------------------------------------------------------


def test_no_flipped_bit_goes_unnoticed_where_it_changes_a_number(members, tmp_path):
    path, right = tmp_path / "g.npz", zipped(*members)
    rng, arrays = np.random.default_rng(0), members[0]
    refused = 0
    for i in range(20_000 if THOROUGH else 400):
        # Every second one where the structure is, at the end.
        first = right.index(b"PK\x01\x02") if i % 2 else 0
        at, bit = int(rng.integers(first, len(right))), 1 << int(rng.integers(8))
        path.write_bytes(right[:at] + bytes([right[at] ^ bit]) + right[at + 1 :])
        try:
            trace = read_trace(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
            continue
        assert trace.names == list(arrays) and trace.meta == members[1]
        for name, array in arrays.items():
            np.testing.assert_array_equal(trace.tensors[name], array)
    assert refused > 100


# ---- compressed candidates, misspelt names --------------------------------------


def test_a_compressed_candidate_is_read_within_a_limit(
    members, tmp_path, capsys, monkeypatch
):
    good, packed = tmp_path / "good.npz", tmp_path / "packed.npz"
    good.write_bytes(zipped(*members))
    np.savez_compressed(packed, **members[0])
    assert packed.stat().st_size < good.stat().st_size
    code, out, err = called(capsys, "golden", "compare", str(good), str(packed))
    assert (code, err) == (0, "") and "within" in out
    for name, array in read_trace(packed).tensors.items():
        np.testing.assert_array_equal(array, members[0][name])
    monkeypatch.setattr("npllama.golden.trace.CHECKED", Reading(True, 1000))
    code, out, err = called(capsys, "golden", "compare", str(good), str(packed))
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert "packed.npz: compressed" in err and "save it with np.savez" in err


MISSPELT = {
    "prefill/lm_haed": "prefill/lm_head",
    "prefill/LM_head": "prefill/lm_head",
    "Prefill/lm_head": "prefill/lm_head",
    "decode_0/lm_head": "decode.0/lm_head",
    "prefill/layers.1.output": "prefill/model.layers.1.output",
    "prefill/model.layers.0.mlp.gate": "prefill/model.layers.0.mlp.gate_proj",
    "cache_k": "cache.k",
}


@pytest.mark.parametrize("wrong, right", MISSPELT.items())
def test_a_misspelt_name_is_told_with_the_right_one(
    members, tmp_path, capsys, wrong, right
):
    arrays, meta = members
    good, other = tmp_path / "good.npz", tmp_path / "other.npz"
    good.write_bytes(zipped(arrays, meta))
    np.savez(other, **{wrong if n == right else n: a for n, a in arrays.items()})
    code, out, err = called(capsys, "golden", "compare", str(good), str(other))
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert repr(wrong) in err and repr(right) in err and "other.npz" in err


def test_tensors_that_the_golden_trace_does_not_have_are_no_error(
    members, tmp_path, capsys
):
    arrays, meta = members
    good, other = tmp_path / "good.npz", tmp_path / "other.npz"
    good.write_bytes(zipped(arrays, meta))
    more = ("prefill/model.layers.1.mlp.act_fn", "decode.7/lm_head", "my own notes")
    np.savez(other, **arrays, **dict.fromkeys(more, np.ones(3)))
    code, out, err = called(capsys, "golden", "compare", str(good), str(other))
    assert code == 0 and not err
    assert "not in the golden trace" in out


def test_the_archives_made_here_are_read_where_nothing_is_wrong(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(archive(member(b"prefill/lm_head.npy", ONE)))
    np.testing.assert_array_equal(read_trace(path)["prefill/lm_head"], [0.0])
    with np.load(path) as file:
        np.testing.assert_array_equal(file["prefill/lm_head"], [0.0])
