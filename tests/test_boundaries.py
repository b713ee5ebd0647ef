"""Laws at boundaries: each holds where a fault once passed every other test."""

import dataclasses
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samplers.own import Pieces
from strategies import DISTINCT
from test_chat import RANKS, dialog
from test_weights import random_tensors

import npllama
from npllama.cli import chat
from npllama.decoding.automaton import compile_regex
from npllama.decoding.guided import Guide, vocabulary_tree
from npllama.decoding.stopping import at_strings
from npllama.files.checkpoint import load, save
from npllama.files.npz import read_npz, write_text, writing
from npllama.text.chat import chat_tokens, detect_format
from npllama.text.tokenizer import Mark

STORIES = npllama.load("stories")

# ---- stopping ---------------------------------------------------------------


@given(
    st.lists(st.text("ab", max_size=5), min_size=1, max_size=6),
    st.text("ab", min_size=1, max_size=6),
)
def test_a_string_is_seen_wherever_it_ends_in_the_last_token(pieces, string):
    stop = at_strings(Pieces(pieces), [string])  # type: ignore[arg-type]
    for n in range(1, len(pieces) + 1):
        text = "".join(pieces[:n])
        # It may have been there before: then generation had stopped.
        if string not in "".join(pieces[: n - 1]):
            assert (stop(range(n)) == "stop") == (string in text)


def test_a_string_that_ends_in_the_middle_of_the_last_token_is_seen():
    stop = at_strings(Pieces(["xa", "bcde"]), ["ab"])  # type: ignore[arg-type]
    assert stop([0]) is None and stop([0, 1]) == "stop"


# ---- formats ----------------------------------------------------------------


def test_an_end_token_whose_text_fits_the_format_comes_only_at_its_end():
    vocabulary = vocabulary_tree([b"a", b"b", b"c"])
    guide = Guide(compile_regex("ab*a"), vocabulary, [1])
    assert guide.allowed(guide.after([])).tolist() == [True, False, False]
    assert guide.allowed(guide.after([0])).tolist() == [True, False, False]
    assert guide.allowed(guide.after([0, 0])).tolist() == [False, True, False]


# ---- conversations ----------------------------------------------------------


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(monkeypatch, capsys):
    talk = chat.Conversation(STORIES, "plain", None)
    config = npllama.GenerationConfig(max_new_tokens=4)
    chat.answer(talk, "Once", config, np.random.default_rng(0))
    tokens, talked = list(talk.tokens), list(talk.dialog)

    def fails(*arguments):
        yield next(real(*arguments))
        raise ValueError("nothing fits")

    real = chat.pieces
    monkeypatch.setattr(chat, "pieces", fails)
    chat.answer(talk, "upon a time", config, np.random.default_rng(0))
    assert "nothing fits; /reset begins anew" in capsys.readouterr().err
    assert (talk.tokens, talk.dialog) == (tokens, talked)
    # The last token of the answer before has been run by now.
    assert int(talk.cache.length[0]) == len(tokens)


def test_plain_turns_keep_their_white_space():
    talk = dialog("  One? ", " Yes.", "Two?  ")
    text = RANKS.decode(chat_tokens(RANKS, talk, "plain"))
    assert text == "  One? \n Yes.\nTwo?  "


def test_a_form_is_detected_by_all_of_its_marks():
    marks = {name: m for name, m in RANKS.marks.items() if "header" not in name}
    few = dataclasses.replace(RANKS, marks=marks | {"<|im_start|>": Mark(0)})
    assert "<|eot_id|>" in marks and detect_format(few) == "plain"


def test_the_shown_name_of_a_special_token_does_not_end_the_start():
    tokenizer = STORIES.tokenizer
    tokens = tokenizer.encode("Once upon", bos=True)
    name = tokenizer.piece(tokens[0])
    assert tokenizer.decode(tokens, skip_special=False) == f"{name}Once upon"


# ---- files ------------------------------------------------------------------


def test_a_member_that_begins_too_late_is_truncated(tmp_path):
    path = tmp_path / "late.npz"
    with writing(path) as archive:
        write_text(archive, "note.txt", "all of it")
    assert read_npz(path).files["note.txt"] == b"all of it"
    content = bytearray(path.read_bytes())
    content[28:30] = struct.pack("<H", 60_000)  # length of the header's extra field
    path.write_bytes(content)
    with pytest.raises(ValueError, match="late.npz: note.txt: the file is truncated"):
        read_npz(path)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"3"])
def test_a_generation_config_that_is_not_an_object_is_named_with_its_file(
    tmp_path, content
):
    path, tensors = tmp_path / "wishes.npz", random_tensors(DISTINCT, "float32")
    save(path, DISTINCT, tensors.items(), files={"generation_config.json": content})
    with pytest.raises(ValueError, match=r"wishes\.npz: generation_config\.json: "):
        load(path)
