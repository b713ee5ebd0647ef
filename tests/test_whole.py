"""Files are whole, old, or not there: whatever stops the writer, and whoever else writes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from children import started
from hypothesis import given
from hypothesis import strategies as st

from npllama.files import whole
from npllama.files.ending import Ended, end, ending_tidily
from npllama.files.whole import (
    check_place,
    new_file,
    new_folder,
    parts_of,
    write_file,
)

ROOT = Path(__file__).parent.parent


def write(path, content=b"new", error=None):
    with new_file(path) as file:
        file.write(content)
        if error:
            raise error


# ---- one writer -------------------------------------------------------------


@given(content=st.one_of(st.binary(), st.text()))
def test_what_is_written_is_what_is_read(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("whole") / "file"
    for _ in range(2):  # anew, and over the old one
        write_file(path, content)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected
    assert os.listdir(path.parent) == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with new_file(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old" and len(parts_of(path)) == 1
        file.write(b"w")
    assert path.read_bytes() == b"new" and parts_of(path) == []


STOPS = [ValueError("x"), KeyboardInterrupt(), SystemExit(3), MemoryError(), OSError()]


@pytest.mark.parametrize("error", STOPS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("before", [None, b"old"])
def test_whatever_stops_the_writer_leaves_what_was_there(tmp_path, error, before):
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    with pytest.raises(type(error)) as caught:
        write(path, error=error)
    assert caught.value is error
    assert (path.read_bytes() if path.exists() else None) == before
    assert parts_of(path) == []


def test_the_file_has_the_rights_that_any_new_file_has(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"new")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


# ---- where a file can be written ------------------------------------------------


def test_no_link_is_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_bytes(b"old")
    for name, aim in (("to_file", precious), ("to_nothing", tmp_path / "nothing")):
        (tmp_path / name).symlink_to(aim)
        with pytest.raises(ValueError, match=f"{name}: is a link"):
            write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    # Somebody guesses the name of a part, and lays a link there.
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 16)
    (tmp_path / f"file.{'0' * 16}.part").symlink_to(precious)
    monkeypatch.setattr(whole, "_remove_left_parts", lambda path: None)
    with pytest.raises(FileExistsError, match="file'"):
        write(tmp_path / "file")
    assert precious.read_bytes() == b"old" and not (tmp_path / "nothing").exists()


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(ValueError, match=f"{name}: is a folder or a device"):
            write(tmp_path / name)
    assert (tmp_path / "folder").is_dir() and (tmp_path / "pipe").is_fifo()


def test_a_source_is_not_written_over_under_any_of_its_names(tmp_path):
    source, other = tmp_path / "source", tmp_path / "other"
    source.write_bytes(b"old")
    os.link(source, other)
    for path in (source, other, tmp_path / "." / "source"):
        with pytest.raises(ValueError, match="is the model; choose another place"):
            check_place(path, {"the model": source})
    check_place(tmp_path / "new", {"the model": source})


def test_a_missing_folder_is_told_before_the_work(tmp_path):
    for place in ("a/file", "a/b/file"):
        with pytest.raises(ValueError, match="there is no folder .*; make it first"):
            check_place(tmp_path / place)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_place(tmp_path / "file" / "more")


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path):
    for name in ("g" * 255, "é" * 127, "\N{SLICE OF PIZZA}" * 63):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"new"
    with pytest.raises(OSError, match="g" * 256):
        check_place(tmp_path / ("g" * 256))


def test_an_error_names_the_file_and_not_its_part(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource", reason="limits are a matter of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large: '.*/file'$"):
            write(tmp_path / "file", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(FileNotFoundError, match="'elsewhere'$"):
        with new_file(tmp_path / "file"):
            open("elsewhere")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="'.*/file'$"):
        write(tmp_path / "file")
    assert os.listdir(tmp_path) == []


# ---- several writers ------------------------------------------------------------


def test_two_writers_do_not_meet_and_the_last_one_to_finish_wins(tmp_path):
    path = tmp_path / "file"
    with new_file(path) as one:
        with new_file(path) as two:
            one.write(b"one")
            two.write(b"two")
            assert len(parts_of(path)) == 2
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["file"]


def test_a_part_that_was_left_is_removed_and_one_that_grows_is_not(tmp_path):
    path, left = tmp_path / "file", tmp_path / f"file.{'0' * 16}.part"
    with new_file(path) as file:
        file.write(b"one")
        left.write_bytes(b"half")
        write(path, b"two")
        assert not left.exists() and len(parts_of(path)) == 1
    assert path.read_bytes() == b"one"


def test_a_part_that_is_taken_for_a_left_one_is_begun_again(tmp_path, monkeypatch):
    path, lock, left = tmp_path / "file", whole._lock, [1]

    def another_writer_comes_first(file):
        if left:
            left.pop()
            os.unlink(file.name)
        lock(file)

    monkeypatch.setattr(whole, "_lock", another_writer_comes_first)
    write(path)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_a_folder_appears_when_it_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as part:
        write_file(part / "one", b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with new_folder(path) as part:
        write_file(part / "one", b"new")
        assert not path.exists()
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(path) == ["one"]
    with pytest.raises(ValueError, match="is there already"), new_folder(path):
        pass


def test_a_folder_that_was_left_is_removed_and_one_that_grows_is_not(tmp_path):
    path, left = tmp_path / "folder", tmp_path / f"folder.{'0' * 16}.part"
    left.mkdir()
    (left / "one").write_bytes(b"half")
    with new_folder(path) as part:
        assert parts_of(path) == [part]
        with pytest.raises(OSError), new_folder(path):
            assert part.exists() and len(parts_of(path)) == 2
            raise OSError
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_is_taken_for_a_left_one_is_begun_again(tmp_path, monkeypatch):
    path, lock, left = tmp_path / "folder", whole._lock, [1]

    def another_writer_comes_first(handle):
        if left:
            left.pop()
            os.rmdir(*parts_of(path))
        lock(handle)

    monkeypatch.setattr(whole, "_lock", another_writer_comes_first)
    with new_folder(path) as part:
        write_file(part / "one", b"new")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(path) == ["one"]


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path, errors = tmp_path / "file", []

    def writer(number):
        try:
            for _ in range(20):
                write(path, bytes([number]) * 50_000)
                content = path.read_bytes()
                assert len(content) == 50_000 and len(set(content)) == 1
        except Exception as error:  # a thread's own would be lost
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == [] and os.listdir(tmp_path) == ["file"]


# ---- signals --------------------------------------------------------------------

WRITER = """
import sys, time
from npllama.files.ending import ending_tidily
from npllama.files.whole import new_file

print("begun", flush=True)
with ending_tidily():
    for number in range(1000000):
        with new_file(sys.argv[1]) as file:
            for _ in range(100):
                file.write(bytes([number % 256]) * 1000)
                time.sleep(0.0001)
"""
ENDINGS = {signal.SIGTERM: 130, signal.SIGHUP: 130, signal.SIGINT: -signal.SIGINT}


def ended_at_random(path, number, moment):
    """Start a writer, send it a signal after a while; its exit code."""
    command = [sys.executable, "-c", WRITER, str(path)]
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with started(command, env=here, **quiet) as process:
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(number)
        return process.wait(60)


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_leaves_a_whole_file_or_none_and_no_part(tmp_path, number):
    path, rng = tmp_path / "file", random.Random(0)
    for _ in range(3):
        path.unlink(missing_ok=True)
        code = ended_at_random(path, number, rng.uniform(0, 0.15))
        assert code == ENDINGS[number] and parts_of(path) == []
        content = path.read_bytes() if path.exists() else b""
        assert len(content) in (0, 100_000) and len(set(content)) <= 1


def test_what_a_kill_leaves_is_removed_by_the_next_writer(tmp_path):
    path = tmp_path / "file"
    assert ended_at_random(path, signal.SIGKILL, 0.1) == -signal.SIGKILL
    write(path)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_signals_raise_in_the_block_and_are_as_they_were_after_it():
    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.signal(number, signal.SIG_DFL)
        with pytest.raises(Ended) as caught, ending_tidily():
            signal.raise_signal(number)
        assert caught.value.code == 130
        assert signal.signal(number, before) == signal.SIG_DFL


class Signals:
    """Sends a signal where Python ignores exceptions: while it is thrown away."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_arrives_where_exceptions_are_ignored_ends_the_block(number):
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before, hook = signal.signal(number, usual[number]), sys.unraisablehook
    try:
        with pytest.raises((Ended, KeyboardInterrupt)), ending_tidily():
            Signals(number)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                pass
        assert sys.unraisablehook == hook
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_or_handled_stays_so():
    heard = []
    for handler in (signal.SIG_IGN, lambda number, frame: heard.append(number)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with ending_tidily():
                signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == handler
        finally:
            signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGHUP]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_import_that_makes_its_own_error_of_a_signal_hides_nothing(number):
    before = [signal.signal(signal.SIGTERM, signal.SIG_DFL)]
    before += [signal.signal(signal.SIGINT, signal.default_int_handler)]
    try:
        with pytest.raises(Ended), ending_tidily():
            try:
                signal.raise_signal(number)
            except BaseException:
                raise ImportError("initialization failed") from None
        with pytest.raises(ImportError, match="no such thing"), ending_tidily():
            raise ImportError("no such thing")
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_another_thread_than_the_main_one_changes_nothing():
    found = []

    def look():
        with ending_tidily():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert found == [signal.getsignal(signal.SIGTERM)] and found[0] is not end
