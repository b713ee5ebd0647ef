"""tools/make_goldens.py: what it finds, and what it does where a library is missing."""

import make_goldens
import pytest
from make_goldens import discover, main


def test_every_golden_says_which_versions_were_asked():
    assert {"model", "sampling", "beam"} <= set(discover())
    assert set(discover()) <= set(make_goldens.NEEDS)


def test_a_golden_is_skipped_with_a_line_where_its_library_is_another(
    monkeypatch, tmp_path, capsys
):
    found = {"pytest": ("0.0.1",), "no-such-thing": ("1",)}
    monkeypatch.setitem(make_goldens.NEEDS, "model", found)
    assert main(["model", "--folder", str(tmp_path)]) == 1
    line = capsys.readouterr().out
    assert line.startswith(
        "model: skipped, needs pytest 0.0.1, no-such-thing 1; found pytest "
    )
    assert line.endswith(", no no-such-thing\n") and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_version_is_known_by_whole_numbers(monkeypatch):
    monkeypatch.setitem(make_goldens.NEEDS, "model", {"torch": ("5.2",)})
    for installed, lacks in (("5.23.0", True), ("5.2.9", False), ("5.2", False)):
        monkeypatch.setattr(make_goldens, "version", lambda _, v=installed: v)
        assert bool(list(make_goldens.lacking("model"))) == lacks


def test_an_unknown_golden_is_a_usage_error_that_lists_the_known(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sampler"])
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "no golden 'sampler'; there are ant_olive, beam," in message
