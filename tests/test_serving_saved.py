"""A saved cache: the same floats as one that was never put away, or a clear refusal."""

import hashlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import PROFILE
from strategies import DISTINCT, configs, dtypes, random_model, seeds, token_ids
from test_weight import all_transposed
from tolerances import assert_same

import npllama
from npllama.cache import KVCache, new_cache
from npllama.cli.main import main
from npllama.config import Rope
from npllama.files.checkpoint import locate
from npllama.files.npz import adding_to, write_array, write_text
from npllama.model import forward
from npllama.ops import rowwise
from npllama.serving import saved
from npllama.serving.saved import (
    Saved,
    common,
    fingerprint,
    load_cache,
    restore,
    save_cache,
)

STEADY = ["default", "linear", "yarn", "llama3"]


def run(model, tokens, room=None):
    """A cache that has seen the tokens, and their logits."""
    cache = new_cache(model.config, 1, room or len(tokens), model.embed.dtype.name)
    return cache, forward(model, np.array([tokens]), cache)


def kept(path, model, tokens):
    """Save the cache of a text, and give the path."""
    save_cache(path, run(model, tokens)[0], tokens, model)
    return path


@pytest.fixture(scope="module")
def model():
    return random_model(DISTINCT, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("saved")


# ---- the same floats --------------------------------------------------------


@given(configs(STEADY), seeds, dtypes, st.integers(1, 9), st.integers(1, 5))
@example(DISTINCT, 0, "float32", 9, 3)
def test_saved_loaded_and_continued_is_continued(folder, config, seed, dtype, S, T):
    model = random_model(config, seed, dtype)
    text = token_ids(config, seed, S + T).tolist()
    path = folder / "c.npz"
    cache, _ = run(model, text[:S], S + T)
    assert save_cache(path, cache, text[:S], model) == S
    expected = forward(model, np.array([text[S:]]), cache)
    again = restore(load_cache(path, model), text, model, S + T + 3)
    assert again.length.tolist() == [S]
    assert_same(forward(model, np.array([text[S:]]), again), expected)
    assert_same(again.k[..., : S + T, :], cache.k)
    assert_same(again.v[..., : S + T, :], cache.v)


@given(configs(STEADY), seeds, st.integers(1, 9), st.integers(0, 9), st.integers(1, 4))
@example(DISTINCT, 0, 9, 4, 2)
@example(DISTINCT, 0, 5, 5, 1)
def test_a_prompt_that_shares_a_beginning_has_the_logits_it_has_alone(
    config, seed, S, shared, more
):
    model = random_model(config, seed)
    first = token_ids(config, seed, S).tolist()
    prompt = first[:shared] + token_ids(config, seed + 1, more).tolist()
    with rowwise():
        cache, _ = run(model, first)
        whole = Saved(cache.k[:, 0], cache.v[:, 0], first)
        again = restore(whole, prompt, model, len(prompt))
        held = int(again.length[0])
        assert held == min(common(first, prompt), len(prompt) - 1)
        assert prompt[:held] == first[:held]
        logits = forward(model, np.array([prompt[held:]]), again)
        assert_same(logits, run(model, prompt)[1][:, held:])


def test_one_token_is_always_left_to_run(model, tmp_path):
    text = [1, 5, 9, 2]
    found = load_cache(kept(tmp_path / "c.npz", model, text), model)
    for prompt, held in (([1, 5, 9, 2], 3), ([1, 5, 9, 2, 7], 4), ([1, 5], 1)):
        assert restore(found, prompt, model, 9).length.tolist() == [held]
    assert restore(found, [1], model, 9).length.tolist() == [0]
    assert restore(found, [2, 5, 9], model, 9).length.tolist() == [0]
    for wrong in ([], [1, 5, 9]):
        with pytest.raises(ValueError, match="give 1 to 2"):
            restore(found, wrong, model, 2)


def test_the_token_that_was_not_run_is_not_saved(model, tmp_path):
    cache, _ = run(model, [1, 5, 9], 8)
    assert save_cache(tmp_path / "c.npz", cache, [1, 5, 9, 2], model) == 3
    found = load_cache(tmp_path / "c.npz", model)
    assert found.tokens == [1, 5, 9] and found.k.shape == (2, 3, 3, 4)
    with pytest.raises(ValueError, match="3 positions of 2 tokens"):
        save_cache(tmp_path / "c.npz", cache, [1, 5], model)


def test_weights_that_are_no_arrays_can_be_saved_with(model, tmp_path):
    other = all_transposed(model)
    path = kept(tmp_path / "c.npz", other, [1, 5, 9])
    assert load_cache(path, other).tokens == [1, 5, 9]
    wq = model.layers[0].wq[::-1]
    changed = model._replace(layers=(model.layers[0]._replace(wq=wq), model.layers[1]))
    for wrong in (model, all_transposed(changed)):
        with pytest.raises(ValueError, match="saved with weights"):
            load_cache(path, wrong)


def test_numpy_reads_a_saved_cache(model, tmp_path):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    with np.load(path, allow_pickle=False) as file:
        assert file["tokens"].tolist() == [1, 5, 9]
        assert_same(file["k"], run(model, [1, 5, 9])[0].k[:, 0])
        about = json.loads(file["npllama.json"])
    assert about["npllama"] == npllama.__version__ and about["dtype"] == "float32"


# ---- refused ----------------------------------------------------------------


def test_a_file_with_any_bit_flipped_is_refused(model, tmp_path):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    whole = path.read_bytes()
    step = 1 if PROFILE == "ci" else 97
    for i in [*range(0, len(whole), step), *range(len(whole) - 90, len(whole))]:
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            load_cache(path, model)
    path.write_bytes(whole)
    load_cache(path, model)


@pytest.mark.parametrize("left", [0, 1, 63, 64, 65, 1000, -64, -1])
def test_a_truncated_file_is_refused(left, model, tmp_path):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="damaged"):
        load_cache(path, model)


OTHERS = {
    "dtype 'float32'.*'float64'": random_model(DISTINCT, 5, "float64"),
    "config.rms_norm_eps": random_model(replace(DISTINCT, rms_norm_eps=0.1), 5),
    "config.rope_parameters": random_model(
        replace(DISTINCT, rope=Rope("default", 500.0)), 5
    ),
    "config.hidden_size 7.*8": random_model(replace(DISTINCT, hidden_size=8), 5),
    "weights": random_model(DISTINCT, 6),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_cache_of_another_model_is_refused_and_the_field_named(
    field, model, tmp_path
):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    with pytest.raises(ValueError, match=f"saved with {field}"):
        load_cache(path, OTHERS[field])


def test_a_cache_of_another_format_is_refused(model, tmp_path, monkeypatch):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    monkeypatch.setattr(saved, "FORMAT", 2)
    with pytest.raises(ValueError, match="saved with format 1; this .* 2"):
        load_cache(path, model)


def test_a_changed_weight_changes_the_fingerprint_where_it_is_sampled():
    config = replace(DISTINCT, vocab_size=3000, hidden_size=20)
    model = random_model(config, 5)
    found = fingerprint(model)
    assert found == fingerprint(random_model(config, 5))
    for i, noticed in ((0, True), (4000, True), (59_999, True), (2000, False)):
        embed = model.embed.copy()
        embed.reshape(-1)[i] += 1
        assert (fingerprint(model._replace(embed=embed)) != found) == noticed
    layer = model.layers[1]._replace(mlp_norm=model.layers[0].mlp_norm)
    assert fingerprint(model._replace(layers=(model.layers[0], layer))) != found


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keys_that_turn_by_the_length_are_refused(kind, model, tmp_path):
    config = replace(DISTINCT, rope=Rope(kind, 10000.0, 2.0))
    other = model._replace(config=config)
    with pytest.raises(ValueError, match=kind):
        save_cache(tmp_path / "c.npz", run(model, [1, 5])[0], [1, 5], other)
    with pytest.raises(ValueError, match=kind):
        load_cache(kept(tmp_path / "c.npz", model, [1, 5]), other)


def test_a_cache_that_is_not_one_row_of_the_model_is_refused(model, tmp_path):
    cache, _ = run(model, [1, 5, 9])
    two = new_cache(DISTINCT, 2, 4)
    wide = KVCache(cache.k.astype(float), cache.v.astype(float), cache.length)
    empty = new_cache(DISTINCT, 1, 4)
    for wrong in (two, wide, empty, KVCache(cache.k[:1], cache.v[:1], cache.length)):
        with pytest.raises(ValueError, match="^cache: "):
            save_cache(tmp_path / "c.npz", wrong, [1, 5, 9], model)
    assert not list(tmp_path.iterdir())


def forged(path, texts, arrays):
    """An archive that ends in the right digest, whatever it holds."""
    with open(path, "wb+") as file:
        with adding_to(file) as archive:
            archive.comment = b"0" * 64
            for name, text in texts.items():
                write_text(archive, name, text)
            for name, array in arrays.items():
                write_array(archive, name, array)
        content = path.read_bytes()[:-64]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def test_a_forged_file_is_refused_in_one_line(model, tmp_path):
    path = tmp_path / "c.npz"
    about = json.dumps(saved.description(model))
    k, tokens = np.zeros((2, 3, 2, 4), dtype=np.float32), np.array([1, 5])
    whole = {"k": k, "v": k, "tokens": tokens}
    forged(path, {"npllama.json": about}, whole)
    assert load_cache(path, model).tokens == [1, 5]
    wrong = [
        ({}, whole),
        ({"npllama.json": "["}, whole),
        ({"npllama.json": "[]"}, whole),
        ({"npllama.json": "[" * 10**5}, whole),
        ({"npllama.json": about}, {}),
        ({"npllama.json": about}, whole | {"v": k[:, :, :1]}),
        ({"npllama.json": about}, whole | {"k": k.astype(np.float64)}),
        ({"npllama.json": about}, whole | {"tokens": tokens[None]}),
        ({"npllama.json": about}, whole | {"tokens": tokens[0]}),
        ({"npllama.json": about}, whole | {"tokens": tokens * 1.0}),
    ]
    for texts, arrays in wrong:
        forged(path, texts, arrays)
        with pytest.raises(ValueError, match="c.npz: "):
            load_cache(path, model)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(
    model, tmp_path, monkeypatch
):
    path = kept(tmp_path / "c.npz", model, [1, 5, 9])
    before = path.read_bytes()

    def full(archive, name, array):
        if name == "v":
            raise OSError(28, "No space left on device")
        write_array(archive, name, array)

    monkeypatch.setattr(saved, "write_array", full)
    with pytest.raises(OSError, match="No space"):
        kept(path, model, [2, 4])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ---- the command ------------------------------------------------------------

STORY = ["generate", "--weights", "stories-draft", "--seed", "3", "--max-new-tokens"]


def text(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr()


WAYS = [
    [],
    ["--json"],
    ["--temperature", "0", "--prompt-lookup-num-tokens", "3"],
    ["--temperature", "0", "--dola-layers", "high"],
    ["--assistant", "stories-draft"],
    ["--assistant-early-exit", "1"],
    ["--assistant-window", "4"],
    ["--regex", "[a-z ,]*"],
]


@pytest.mark.parametrize("more", WAYS)
def test_the_command_saves_and_continues_the_same_text(more, capsys, tmp_path):
    path = str(tmp_path / "c.npz")
    whole = text(capsys, *STORY, "9", "Once upon a time", *more).out
    first = text(capsys, *STORY, "9", "Once upon a time", "--save-cache", path, *more)
    again = text(capsys, *STORY, "9", "Once upon a time", "--load-cache", path, *more)
    for told in (first.out, again.out):
        if more == ["--json"]:
            told, expected = json.loads(told)["texts"], json.loads(whole)["texts"]
            assert told == expected
        else:
            assert told == whole
    assert f"tokens in {path}]" in first.err
    assert "[cache: 4 of 5 prompt tokens]" in again.err


def test_the_text_ends_its_line_before_the_cache_is_told(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    path = tmp_path / "c.npz"
    assert main([*STORY, "3", "Once upon", "--save-cache", str(path)]) == 0
    assert f"\n[cache: 5 tokens in {path}]\n" in screen.getvalue()


def test_generate_takes_a_cache_for_one_text_alone():
    model = npllama.load("stories-draft")
    cache = new_cache(model.config, 1, 30)
    found = npllama.generate(model, "Once", cache=cache, do_sample=False)
    assert found.tokens == npllama.generate(model, "Once", do_sample=False).tokens
    whole = len(found.prompt_tokens) + len(found.tokens)
    assert cache.length.tolist() == [whole - 1]
    cache = new_cache(model.config, 1, 30)
    for prompts, options in (
        (["a", "b"], {}),
        ("a", {"num_beams": 2}),
        ("a", {"num_return_sequences": 2, "do_sample": True}),
    ):
        with pytest.raises(ValueError, match="a cache is for one text"):
            npllama.generate(model, prompts, cache=cache, **options)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--num-beams", "2", "--save-cache", "x"], "beams"),
        (["--num-return-sequences", "2", "--load-cache", "x"], "several texts"),
        (["--penalty-alpha", "0.5", "--load-cache", "x"], "contrastive"),
        (
            ["--lookahead-window", "3", "--temperature", "0", "--save-cache", "x"],
            "lookahead",
        ),
        (["--save-cache", "no/such/folder.npz"], "no folder"),
        (["--save-cache", "."], "--save-cache"),
        (["--save-cache", str(locate("stories-draft"))], "is the model"),
    ],
)
def test_misuse_is_one_line_and_exit_code_two(more, said, capsys):
    assert main([*STORY, "3", "Once", *more]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and said in told.err


def test_a_file_that_is_not_there_or_no_cache_is_one_line(capsys, tmp_path):
    path = tmp_path / "c.npz"
    assert main([*STORY, "3", "Once", "--load-cache", str(path)]) == 1
    path.write_text("no cache")
    assert main([*STORY, "3", "Once", "--load-cache", str(path)]) == 1
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 2
    assert "damaged, or not a saved cache" in told.err
