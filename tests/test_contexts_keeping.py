"""A text over chosen keys is the plain one while all fit, and goes on when not."""

import numpy as np
import pytest
from strategies import token_ids
from test_contexts_eviction import model_of

import npllama
from npllama.cli.main import main
from npllama.contexts.eviction import make_room, new_kept, read_on
from npllama.contexts.keeping import SnapKV, h2o_streamed, kept_pieces

STORY = "Once upon a time there was a girl called Lily. She had a red"


def made(policy, room, new=20, prompt=STORY):
    model = npllama.load("stories-draft")
    config = npllama.GenerationConfig(
        max_new_tokens=new, do_sample=True, eos_token_id=[]
    )
    rng = np.random.default_rng(3)
    if policy is None:
        return list(npllama.pieces(model, prompt, config, rng))
    return list(kept_pieces(model, prompt, config, rng, policy, room))


@pytest.mark.parametrize("policy", ["h2o", "snapkv"])
def test_with_room_for_all_the_text_is_that_of_generate(policy):
    assert made(policy, 100) == made(None, 0)


@pytest.mark.parametrize("policy", ["h2o", "snapkv"])
def test_with_little_room_the_text_goes_on_and_is_another(policy):
    found = made(policy, 8)
    assert len(found) == 20 and found[-1].reason == "length"
    assert found != made(None, 0)


@pytest.mark.parametrize("policy", ["h2o", "snapkv"])
def test_a_text_over_chosen_keys_ends_with_the_context(policy):
    model = npllama.load("stories-draft")
    room = npllama.decoding.context_length(model.config)
    n = len(model.tokenizer.encode(STORY))
    prompt = [*token_ids(model.config, 0, room - 3 - n), *model.tokenizer.encode(STORY)]
    found = made(policy, 16, prompt=[int(token) for token in prompt])
    assert len(found) == 3 and found[-1].reason == "context"


def test_h2o_makes_room_before_every_token_and_reads_a_prompt_in_pieces():
    model, room = model_of(3), 8
    tokens = token_ids(model.config, 3, 20)
    kept, by_hand = (new_kept(model.config, room, "float64") for _ in range(2))
    logits = [h2o_streamed(model, tokens[:15], kept)]
    logits += [h2o_streamed(model, [token], kept) for token in tokens[15:]]
    expected = []
    for piece in np.split(tokens, [8, 10, 12, 14, *range(15, 20)]):
        make_room(by_hand, len(piece), 4)
        expected.append(read_on(model, piece, by_hand)[-1])
    assert np.array_equal(logits, expected[4:])


def test_snapkv_gives_back_what_it_dropped():
    model = model_of(4)
    tokens = token_ids(model.config, 4, 30)
    run = SnapKV(model, 10, 5)
    run(tokens.tolist())
    assert run.kept.cache.k.shape[3] == 15 and run.kept.cache.length[0] == 10
    assert run.kept.read[0] == 30
    run([1])
    assert run.kept.cache.length[0] == 11 and run.kept.read[0] == 31


FEW = ["generate", STORY, "--weights", "stories-draft", "--seed", "1"]


@pytest.mark.parametrize(
    "words", [["h2o"], ["snapkv"], ["sinks"], ["context-shift", "--sinks", "2"]]
)
def test_the_policy_is_an_option_of_generate(words, capsys):
    how = ["--stream-window", "16", "--max-new-tokens", "30", "--eos-token-id", "[]"]
    assert main([*FEW, *how, "--cache-policy", *words]) == 0
    assert "decode 30 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--cache-policy", "h2o"], "--cache-policy is for --stream-window"),
        (["--stream-window", "16", "--cache-policy", "h2o", "--sinks", "2"],
         "--sinks is not for --cache-policy h2o"),
        (["--stream-window", "16", "--cache-policy", "context-shift", "--discard", "2"],
         "--discard is not for --cache-policy context-shift"),
        (["--stream-window", "3", "--cache-policy", "snapkv"], "from 4 keys on"),
    ],
)  # fmt: skip
def test_what_a_policy_does_not_know_is_one_line(words, line, capsys):
    assert main([*FEW, *words]) == 2
    message = capsys.readouterr().err
    assert line in message and len(message.splitlines()) == 1
