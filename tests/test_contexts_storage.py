"""A model on storage is the model, reads what it should, and ends as it should."""

import errno
import gc
import os
import threading
import time
import tracemalloc
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DISTINCT, configs, random_model, seeds, token_ids
from tolerances import assert_same

import npllama
from npllama.cache import new_cache
from npllama.contexts import reading, storage
from npllama.contexts.reading import Reader, Source, contents, widen_into
from npllama.contexts.storage import (
    Streamed,
    model_on_storage,
    read_per_pass,
    starts_of,
)
from npllama.files.checkpoint import STORED, load, save
from npllama.files.npz import read_npz
from npllama.model import forward
from npllama.weights import tensor_shapes

KINDS = tuple(STORED)


def stored_as(tensor, kind):
    """A float32 tensor as a file of this dtype holds it."""
    if kind == "bfloat16":
        return (tensor.view(np.uint32) >> 16).astype(np.uint16)
    return tensor.astype(STORED[kind])


def written(path, config, seed, kind="float32"):
    """A file of random weights."""
    rng = np.random.default_rng(seed)
    tensors = (
        (name, stored_as(rng.standard_normal(shape, dtype=np.float32), kind))
        for name, shape in tensor_shapes(config).items()
    )
    save(path, config, tensors, dtype=kind)
    return path


def filled(layers, timeout=5):
    """Wait until the thread has nothing to do."""
    reader, end = layers.reader, time.monotonic() + timeout
    while reader.filled - reader.used < reader.buffers and time.monotonic() < end:
        time.sleep(0.001)
    assert reader.filled - reader.used == reader.buffers or not reader.order


EARLIER = set()


@pytest.fixture(autouse=True)
def earlier_threads():
    """Threads that are none of this test's: a fault may have left some."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def threads_of_ours():
    return [t for t in set(threading.enumerate()) - EARLIER if t.name == "storage"]


def no_thread_of_ours(timeout=5):
    end = time.monotonic() + timeout
    while threads_of_ours():
        assert time.monotonic() < end
        time.sleep(0.001)
    return True


def passes(model, tokens):
    """Logits of a prompt of 2, and of every token after it."""
    cache = new_cache(model.config, 1, len(tokens), model.embed.dtype.name)
    some = [forward(model, np.array([tokens[:2]]), cache)]
    some += [forward(model, np.array([[t]]), cache, last=True) for t in tokens[2:]]
    return some


@pytest.fixture
def poison(monkeypatch):
    """Buffers that nobody uses any more hold NaN; pieces are short."""
    buffers = []
    make, release = storage.aligned, Reader.release

    def aligned(size):
        buffers.append(make(size))
        buffers[-1][:] = np.nan
        return buffers[-1]

    def spoil(reader, number):
        if number == reader.used:
            buffers[number % reader.buffers - reader.buffers][:] = np.nan
        release(reader, number)

    monkeypatch.setattr(storage, "aligned", aligned)
    monkeypatch.setattr(Reader, "release", spoil)
    for module in (reading, storage):
        monkeypatch.setattr(module, "PIECE", 5)


FIVE = replace(DISTINCT, num_hidden_layers=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pinned", "buffers", "tied"),
    [
        ((), 2, False),
        ((0, 3), 2, True),
        ((0, 1, 2, 3, 4), 1, False),
        ((5,), 3, True),
        (range(6), 2, False),
    ],
)
def test_logits_have_the_bits_of_a_loaded_model(
    kind, pinned, buffers, tied, tmp_path, poison
):
    config = replace(FIVE, tie_word_embeddings=tied)
    path = written(tmp_path / "model.npz", config, 3, kind)
    tokens = [3, 1, 12, 0, 7]
    expected = passes(load(path), tokens)
    assert all(np.isfinite(logits).all() for logits in expected)
    with Streamed(path, pinned, buffers) as layers:
        for ours, theirs in zip(passes(model_on_storage(layers), tokens), expected):
            assert_same(ours, theirs)
    assert no_thread_of_ours()


@settings(max_examples=15)
@given(
    configs(),
    seeds,
    st.sampled_from(KINDS),
    st.sets(st.integers(0, 2)),
    st.integers(1, 3),
)
def test_any_model_on_storage_has_the_bits_of_a_loaded_one(
    tmp_path_factory, config, seed, kind, pinned, buffers
):
    path = tmp_path_factory.mktemp("any") / "model.npz"
    written(path, config, seed, kind)
    pinned = {part for part in pinned if part <= config.num_hidden_layers}
    tokens = token_ids(config, seed, 4).tolist()
    with np.errstate(all="ignore"):
        expected = passes(load(path), tokens)
        with Streamed(path, pinned, buffers) as layers:
            for ours, theirs in zip(passes(model_on_storage(layers), tokens), expected):
                assert_same(ours, theirs)


def test_the_whole_of_generation_runs_on_it():
    with Streamed("stories", (1,)) as layers:
        options = {"max_new_tokens": 12, "num_beams": 2, "logprobs": 2}
        ours = npllama.generate(model_on_storage(layers), "Once", **options)
        assert ours == npllama.generate(npllama.load("stories"), "Once", **options)


# ---- what is read -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_pass_reads_what_is_not_pinned_and_its_rows(kind, tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1, kind)
    tensors = read_npz(path).tensors
    for pinned in ((), (1,), (0, 4), (2, 5)):
        parts = {f"model.layers.{i}." for i in range(5) if i not in pinned}
        parts |= {"lm_head"} if 5 not in pinned else set()
        size = sum(t.nbytes for n, t in tensors.items() if n.startswith(tuple(parts)))
        row = tensors["model.embed_tokens.weight"][0].nbytes
        with Streamed(path, pinned) as layers:
            model = model_on_storage(layers)
            filled(layers)
            cache, before = new_cache(FIVE, 1, 9), layers.bytes_read
            for tokens in ([1, 2, 3, 4], [5], [6]):  # a prompt is read for at once
                forward(model, np.array([tokens]), cache)
                filled(layers)
                found, before = layers.bytes_read - before, layers.bytes_read
                assert found == size + len(tokens) * row
                assert found == read_per_pass(layers.contents, pinned, len(tokens))
            assert len(layers.times) == 3


def test_layers_of_the_shipped_model_have_the_bytes_that_were_read_before():
    found = contents("stories")
    layers = [found.bytes_of(i) for i in range(5)]
    assert [sum(layers[n:]) for n in (0, 2, 4)] == [3936000, 2361600, 787200]


def test_memory_holds_buffers_and_what_is_pinned(tmp_path):
    """And no more than the activations of a few small products besides."""
    sizes = {"hidden_size": 64, "intermediate_size": 400, "vocab_size": 200}
    config = replace(FIVE, num_hidden_layers=9, **sizes)
    path = written(tmp_path / "model.npz", config, 1, "bfloat16")
    found = contents(path)
    buffer = 4 * max(starts_of(spans)[-1] for spans in found.parts)
    planned = 2 * buffer + found.bytes_of(4) + 2 * reading.PIECE
    tracemalloc.start()
    try:
        with Streamed(path, (4,)) as layers:
            passes(model_on_storage(layers), [1, 2, 3, 4])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert planned <= peak < planned + 2**17 < 4 * 9 * buffer


def test_every_number_is_widened_as_a_loaded_one():
    """All 65,536 of 16 bits, NaNs and infinities too; and some wide ones."""
    bits = np.arange(2**16, dtype=np.uint16)
    wide = np.array([0.1, -1e-50, 1e300, np.nan], dtype=np.float64)
    for kind, numbers in (
        ("bfloat16", bits),
        ("float16", bits.view(np.float16)),
        ("float64", wide),
    ):
        out = np.empty(len(numbers), dtype=np.float32)
        widen_into(out, numbers, kind)
        with np.errstate(over="ignore"):
            expected = npllama.files.checkpoint.widen(numbers, kind, "float32")
        assert out.tobytes() == expected.tobytes()


def test_pinned_layers_that_need_no_widening_need_no_buffer(tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    with Streamed(path, range(6)) as layers:
        assert layers.reader.order == () and layers.buffers[0].size == 0
        assert not threads_of_ours()
        before = layers.bytes_read
        model = model_on_storage(layers)
        once = layers.bytes_read - before
        forward(model, np.array([[1, 2]]), new_cache(FIVE, 1, 2))
        row = FIVE.hidden_size * 4
        assert once == row and layers.bytes_read - before == once + 2 * row


def test_a_read_that_comes_in_parts_is_put_together(tmp_path):
    file = tmp_path / "numbers"
    file.write_bytes(bytes(range(200)))
    source = Source(file)
    whole = source.file.readinto

    class Short:
        """A file that gives at most 7 bytes at a time."""

        seek, close = source.file.seek, source.file.close

        def readinto(self, view):
            return whole(view[:7])

    source.file = Short()
    out = np.empty(100, dtype=np.uint8)
    source.fill(50, out)
    assert out.tolist() == list(range(50, 150)) and source.bytes_read == 100
    source.file.close()


# ---- buffers ----------------------------------------------------------------


def reader_of(order, buffers, log=None):
    """A reader that only writes down where it brought what."""
    held = [None] * buffers

    def fill(part, buffer):
        held[buffer] = part
        if log is not None:
            log.append(part)
        yield

    return Reader(order, buffers, fill), held


@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_a_part_stays_until_it_is_released(buffers):
    reader, held = reader_of([4, 0, 7], buffers)
    for part in [4, 0, 7, 4, 0]:
        number = reader.take(part)
        time.sleep(0.01)  # time enough to read on
        assert held[number % buffers] == part
        reader.release(number)
    reader.close()


def test_the_next_pass_is_read_before_it_is_asked_for():
    log = []
    reader, _ = reader_of([0, 1, 2], 2, log)

    def has_read(parts):
        end = time.monotonic() + 5
        while len(log) < len(parts) and time.monotonic() < end:
            time.sleep(0.001)
        return log == parts

    reader.release(reader.take(0))
    reader.release(reader.take(1))
    last = reader.take(2)
    assert has_read([0, 1, 2, 0])  # while the last part is used
    reader.release(last)
    assert has_read([0, 1, 2, 0, 1])
    time.sleep(0.01)
    assert has_read([0, 1, 2, 0, 1])  # and no further: both buffers are full
    reader.close()


def test_a_pass_that_was_broken_off_leaves_the_next_one_whole(tmp_path, poison):
    path = written(tmp_path / "model.npz", FIVE, 2)
    expected = passes(load(path), [1, 2, 3])
    with Streamed(path, (1,)) as layers:
        stale = []
        for stop in (0, 2, 4):
            for i, _ in enumerate(old := iter(layers)):
                if i == stop:
                    break
            stale.append(old)  # as a traceback keeps it
        model = model_on_storage(layers)
        for ours, theirs in zip(passes(model, [1, 2, 3]), expected):
            stale = stale[1:]
            assert_same(ours, theirs)


def test_what_is_released_twice_is_released_once():
    reader, _ = reader_of([0, 1, 2], 2)
    first = reader.take(0)
    reader.release(first)
    second = reader.take(1)
    reader.release(first)
    assert reader.used == second == first + 1
    reader.close()


# ---- how it ends ------------------------------------------------------------


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    layers = Streamed(path)
    model = model_on_storage(layers)
    filled(layers)
    os.truncate(path, contents(path).parts[3][0].at)
    for _ in range(2):  # it does not get better
        with pytest.raises(ValueError, match="model.npz: ends at byte .*truncated"):
            passes(model, [1, 2, 3, 4])
    layers.close()
    assert no_thread_of_ours()


def test_an_error_of_the_disk_surfaces_where_the_layer_is_used(tmp_path, monkeypatch):
    path = written(tmp_path / "model.npz", FIVE, 1)
    with Streamed(path) as layers:
        filled(layers)

        def broken(view):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        file = layers.source.file
        layers.source.file = type(
            "Broken", (), {"seek": file.seek, "close": file.close}
        )
        layers.source.file.readinto = staticmethod(broken)
        taken = 0
        with pytest.raises(OSError, match="model.npz") as caught:
            for _ in layers:
                taken += 1
        assert caught.value.errno == errno.EIO and taken == 2
    assert no_thread_of_ours()


def test_a_truncated_file_is_refused_at_once(tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="not an .npz"):
        Streamed(path)
    assert no_thread_of_ours()


def test_closed_layers_say_so_and_leave_no_thread(tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    layers = Streamed(path)
    model = model_on_storage(layers)
    iterator = iter(layers)
    next(iterator)
    layers.close()
    layers.close()
    assert no_thread_of_ours() and layers.source.file.closed
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    with pytest.raises(ValueError, match="closed"):
        forward(model, np.array([[1]]), new_cache(FIVE, 1, 2))


def test_forgotten_layers_leave_no_thread(tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    layers = Streamed(path)
    assert threads_of_ours()
    source = layers.source
    del layers
    gc.collect()
    assert no_thread_of_ours() and source.file.closed


def test_a_long_read_is_given_up_when_it_is_closed():
    begun, pieces, most = threading.Event(), [], 10**6

    def fill(part, buffer):
        for i in range(most):
            pieces.append(i)
            begun.set()
            yield

    reader = Reader([0], 1, fill)
    assert begun.wait(5)
    reader.close()
    assert no_thread_of_ours() and len(pieces) < most


@pytest.mark.parametrize(
    ("pinned", "buffers"), [((6,), 2), ((-1,), 2), ((), 0), ((0,), -1)]
)
def test_parts_and_buffers_that_do_not_exist_are_refused(pinned, buffers, tmp_path):
    path = written(tmp_path / "model.npz", FIVE, 1)
    with pytest.raises(ValueError, match="no such part, or no buffer"):
        Streamed(path, pinned, buffers)


def test_tensors_in_fortrans_order_are_refused(tmp_path):
    path, model = tmp_path / "model.npz", random_model(DISTINCT, 1)
    written(path, DISTINCT, 1)
    archive = read_npz(path)
    parts = {name: np.asfortranarray(t) for name, t in archive.tensors.items()}
    turned = tmp_path / "turned.npz"
    np.savez(turned, **parts)
    with zipfile.ZipFile(turned, "a") as file:
        for name, text in archive.files.items():
            file.writestr(name, text)
    assert load(turned).config == model.config
    with pytest.raises(ValueError, match="Fortran"):
        contents(turned)


def test_two_threads_may_read_one_file(tmp_path):
    numbers = np.arange(4096, dtype=np.uint8)
    file = tmp_path / "numbers"
    file.write_bytes(numbers.tobytes())
    source, wrong = Source(file), []

    def read(at):
        out = np.empty(64, dtype=np.uint8)
        for _ in range(200):
            source.fill(at, out)
            wrong.extend([] if (out == numbers[at : at + 64]).all() else [at])

    threads = [threading.Thread(target=partial(read, at)) for at in (0, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    source.file.close()
    assert not wrong and source.bytes_read == 2 * 200 * 64
