"""The command line as a user meets it: texts out, one line when something is wrong."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import children
import numpy as np
import pytest

import npllama
from npllama.cli import main as cli
from npllama.cli.main import main
from npllama.files.checkpoint import save
from npllama.weights import tensor_shapes

ROOT = Path(__file__).parent.parent


def run(*words, stdin=""):
    """Run the program as a user does; return (exit code, output, errors)."""
    done = children.run(
        [sys.executable, "-m", "npllama", *words],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def called(capsys, *words):
    """The same in this process, which is quicker."""
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_generate_continues_a_text_and_reports_its_speed_apart():
    code, out, err = run(
        "generate", "Once upon a time", "--max-new-tokens", "8", "--seed", "1"
    )
    assert code == 0 and out.startswith("Once upon a time") and len(out) > 20
    assert "tokens/s" in err and "peak memory" in err and "tokens/s" not in out


CUTS = [
    (("--max-new-tokens", "3"), "[cut at --max-new-tokens 3]"),
    (("--max-length", "7"), "[cut at --max-length 7]"),
    (("--max-new-tokens", "3", "--num-beams", "2"), "[cut at --max-new-tokens 3]"),
    (("--max-new-tokens", "3", "--logprobs", "1"), "[cut at --max-new-tokens 3]"),
    (
        ("--max-new-tokens", "3", "--num-beams", "2", "--num-return-sequences", "2"),
        "[texts 1, 2 cut at --max-new-tokens 3]",
    ),
]


@pytest.mark.parametrize("options, line", CUTS)
def test_a_text_that_is_cut_says_where(options, line, capsys):
    code, out, err = called(capsys, "generate", "Once", *options)
    assert code == 0 and line in err.splitlines() and "cut" not in out


def test_a_text_that_ends_by_itself_is_not_cut(capsys):
    for words in (
        ("--max-new-tokens", "400", "--temperature", "0"),
        ("--stop-strings", "a"),
    ):
        code, out, err = called(capsys, "generate", "Once", *words)
        assert code == 0 and "[cut" not in err


def test_a_search_is_timed_with_its_prompt(capsys):
    words = ("--num-beams", "2", "--max-new-tokens", "4")
    err = called(capsys, "generate", "Once upon a time", *words)[2]
    assert "the prompt's time included" in err and "too few" not in err


def test_a_seed_repeats_a_text(capsys):
    words = ("generate", "Once", "--max-new-tokens", "12", "--seed")
    first, again, other = (called(capsys, *words, s)[1] for s in ("1", "1", "2"))
    assert first == again != other


def test_the_prompt_comes_from_standard_input_too():
    words = ("generate", "--max-new-tokens", "6", "--temperature", "0")
    given = run(*words, "Long ago")[1]
    assert run(*words, stdin="Long ago\n")[1] == given
    assert run(*words, "-", stdin="Long ago\n")[1] == given


def test_json_is_one_object(capsys):
    words = ("--json", "--max-new-tokens", "5", "--temperature", "0", "--logprobs", "2")
    code, out, _ = called(capsys, "generate", "Once", *words)
    answer = json.loads(out)
    text = answer["texts"][0]
    assert code == 0 and answer["prompt"] == "Once" and len(text["tokens"]) == 5
    assert text["finish_reason"] == "length" and len(text["logprobs"][0]["top"]) == 2
    assert answer["statistics"]["new_tokens"] == 5


def test_beams_and_several_texts_are_printed(capsys):
    words = ("--num-beams", "3", "--num-return-sequences", "2", "--max-new-tokens", "5")
    code, out, _ = called(capsys, "generate", "Once", *words)
    assert code == 0 and out.count("Once") == 2


def test_every_option_of_the_config_is_an_option_of_the_command(capsys):
    from dataclasses import fields

    from npllama.generation.options import GenerationConfig

    _, out, _ = called(capsys, "generate", "--help")
    names = {f.name for f in fields(GenerationConfig)} - {"prefix_allowed_tokens_fn"}
    assert not [n for n in names if "--" + n.replace("_", "-") not in out]


def test_help_says_of_every_option_what_it_does_its_range_and_its_default(capsys):
    from npllama.generation.limits import FLAG
    from npllama.generation.options import OPTIONS

    _, out, _ = called(capsys, "generate", "--help")
    text = " ".join(out.split()).replace("- ", "-")
    for name, option in OPTIONS.items():
        if name != "prefix_allowed_tokens_fn":
            says = option.says.replace("- ", "-")
            legal = "" if option.range is FLAG else option.range.legal
            assert says in text and legal[:12] in text
    assert "(from 0 to 1; default: 0.1)" in text and "default: 256)" in text
    chapters = dict.fromkeys(option.chapter for option in OPTIONS.values())
    places = [out.index(f"\n{chapter}:\n") for chapter in chapters]
    assert places == sorted(places) and out.index("usage") < 80
    assert 'npllama generate "Once upon a time"\n' in out


def test_seed_that_was_not_given_is_told_and_repeats_the_text(capsys):
    words = ("generate", "Once", "--max-new-tokens", "12")
    _, first, err = called(capsys, *words)
    seed = err.split("--seed ")[1].split()[0]
    assert called(capsys, *words, "--seed", seed)[1] == first
    _, again, _ = called(capsys, *words, "--json", "--seed", seed)
    assert json.loads(again)["seed"] == int(seed)
    assert "--seed" not in called(capsys, *words, "--temperature", "0")[2]


def test_what_goes_wrong_in_a_text_begins_a_new_line(capsys):
    # After two tokens nothing is left.
    words = ("--allowed-token-ids", "[5, 6]", "--no-repeat-ngram-size", "1")
    code, out, err = called(capsys, "generate", "Once", *words, "--eos-token-id", "[]")
    assert code == 1 and out.startswith("Once") and out.endswith("\n")
    assert "removed by no_repeat_ngram_size and allowed_token_ids" in err
    assert err.count("\n") == 1


def test_options_in_json_reach_the_config(capsys):
    words = ("--max-new-tokens", "30", "--temperature", "0", "--bad-words-ids")
    plain = called(capsys, "generate", "Once", "--json", *words[:4])[1]
    first = json.loads(plain)["texts"][0]["tokens"][0]
    banned = called(capsys, "generate", "Once", "--json", *words, f"[[{first}]]")[1]
    assert first not in json.loads(banned)["texts"][0]["tokens"]


@pytest.mark.parametrize(
    "wishes, words, expected",
    [
        ({}, "", {"max_new_tokens": 256, "temperature": 0.8, "do_sample": True}),
        ({}, "--max-length 9", {"max_new_tokens": None, "max_length": 9}),
        ({"temperature": 1.0}, "", {"temperature": 1.0}),
        ({"do_sample": False}, "", {"do_sample": False}),
        ({"do_sample": True}, "--temperature 0", {"do_sample": False}),
        ({"temperature": 0.3}, "--temperature 0.7", {"temperature": 0.7}),
        ({"max_length": 50}, "", {"max_new_tokens": None, "max_length": 50}),
        ({"max_length": 50}, "--max-new-tokens 7", {"max_new_tokens": 7}),
        ({"max_new_tokens": 5}, "--max-length 9", {"max_new_tokens": None}),
        ({"top_p": 0.9, "pad_token_id": 0}, "", {"top_p": 0.9}),
    ],
)
def test_options_have_precedence_over_the_makers_wishes(wishes, words, expected):
    import npllama
    from npllama.cli.options import generation_config

    model = npllama.load("stories")._replace(generation_config=wishes)
    options = cli.parser().parse_args(["generate", "x", *words.split()])
    config = generation_config(options, model)
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_schema_is_obeyed(capsys):
    schema = '{"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}'
    words = ("--json-schema", schema, "--seed", "0", "--json")
    _, out, _ = called(capsys, "generate", "Once", *words)
    text = json.loads(out)["texts"][0]["text"]
    assert json.loads(text) in ({"n": True}, {"n": False})


def test_info_counts_what_is_there(capsys):
    code, out, _ = called(capsys, "info", "--json")
    facts = json.loads(out)
    parts = facts["parameters"]
    assert code == 0 and parts["total"] == sum(parts.values()) - parts["total"]
    assert parts["total"] <= 3_000_000
    config = facts["config"]
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    assert facts["bytes, as computed with"]["cache per token"] == (
        per_token * config["head_dim"] * 4
    )
    assert "parameters" in called(capsys, "info")[1]


WRONG = [
    (2, ("generate", "x", "--temperature", "-1"), "temperature is -1.0"),
    (2, ("generate", "x", "--top-p", "2"), "top_p is 2.0"),
    (2, ("generate", "x", "--seed", "-1"), "seed"),
    (2, ("generate", "x", "--max-new-tokens", "many"), "invalid int value"),
    (2, ("generate", "x", "--bad-words-ids", "[[1"), "not JSON"),
    (2, ("generate", "x", "--no-such-option"), "--no-such-option (try"),
    (2, ("generate", "x", "--temprature", "0"), "do you mean --temperature?"),
    (2, ("chat", "--sytem=x"), "do you mean --system?"),
    (2, ("golden", "compare", "a", "b", "--jsn"), "do you mean --json?"),
    (2, ("generate", "x", "--bad-words-ids", "5"), "bad_words_ids is 5"),
    (2, ("generate", "x", "--sequence-bias", "[[{}, 5]]"), "sequence_bias is"),
    (2, ("generate", "x", "--logit-bias", '{"a": 1}'), "logit_bias is"),
    (2, ("generate", "x", "--dola-layers", "5"), "dola_layers is 5"),
    (2, ("generate", "x", "--watermarking-config", '{"keys": 5}'), "keys is 5"),
    (2, ("generate", "x", "--penalty-alpha", "0.6", "--do-sample"), "penalty_alpha"),
    (2, ("generate", "\udcff"), "PROMPT is not UTF-8"),
    (2, ("chat", "--num-beams", "2"), "a chat shows one text"),
    (2, ("chat", "--logprobs", "2"), "a chat shows one text"),
    (2, ("chat", "--token-healing"), "without token_healing"),
    (2, ("chat", "--echo"), "without echo"),
    (1, ("chat", "--assistant", "nowhere"), "nowhere"),
    (2, ("generate", "x", "--num-beams", "9" * 30), "from 1 to 16384"),
    (2, ("generate", "x", "--best-of", "20000", "--do-sample"), "from 1 to 16384"),
    (2, ("generate", "x", "--forced-bos-token-id", "9" * 30), "must be a token id"),
    (2, ("generate", "x", "--suppress-tokens", f"[{2**63}]"), "a list of token ids"),
    (2, ("generate", "x", "--regex", "\udcff"), "--regex is not UTF-8"),
    (2, ("generate", "x", "--stop-strings", "\udcff"), "--stop-strings is not UTF-8"),
    (1, ("chat", "--format", "llama-3"), "format: llama-3 needs"),
    (1, ("chat", "--format", "chatml"), "format: chatml needs <|im_start|>"),
    (1, ("chat", "--format", "template"), "this model has no chat template"),
    (2, ("chat", "--sinks", "4"), "--sinks is for --stream-window"),
    (2, ("chat", "--stream-window", "1"), "a window of 1: from 2 to"),
    (2, ("chat", "--allowed-special", "<s>"), "without allowed_special"),
    (2, ("generate", "--tokens", "1,x"), "token ids are whole numbers with commas"),
    (2, ("generate", "x", "--tokens", "1"), "no PROMPT, no --special"),
    (2, ("generate", "--special", "--tokens", "1"), "no PROMPT, no --special"),
    (1, ("generate", "--tokens", "1 99999"), "99999 is outside the vocabulary"),
    (1, ("generate", "x", "--allowed-special", "<x>"), "'<x>' is not a special token"),
    (1, ("generate", "x", "--weights", ""), "no weights file of an empty name"),
    (2, ("generate", "x", "--guidance-scale", "1e39"), "from -1e30 to 1e30"),
    (2, ("frobnicate",), "no command"),
    (2, ("golden",), "required"),
    (1, ("generate", "x", "--weights", "nowhere.npz"), "shipped with npllama: stories"),
    (1, ("generate", "x", "--weights", __file__), "not an .npz"),
    (1, ("generate", "x", "--weights", str(ROOT)), ""),
    (1, ("generate", "a b " * 600), "context is 512"),
    (2, ("generate", "x", "--json-schema", '{"type": "thing"}'), "not one of"),
    (2, ("generate", "x", "--json-schema", '{"type": '), "is not JSON"),
    (2, ("generate", "x", "--json-schema", "@nowhere.json"), "nowhere.json"),
    (2, ("generate", "x", "--json-schema", "[" * 100_000), "is not JSON"),
    (2, ("generate", "x", "--regex", "(a"), "a group is not closed at 2"),
    (2, ("generate", "x", "--regex", "(" * 100_000), "nested too deeply"),
    (2, ("generate", "x", "--regex", "[^a]" * 20_000), "200000 states"),
    (1, ("generate", "x", "--assistant", "nowhere"), "nowhere"),
    (1, ("info", "--weights", "nowhere.npz"), "nowhere.npz"),
]


def test_options_nested_too_deeply_are_one_line(capsys, tmp_path):
    file = tmp_path / "deep.json"
    file.write_text("[" * 100_000)
    code, out, err = called(capsys, "generate", "x", "--generation-config", str(file))
    assert (code, out) == (1, "") and err.count("\n") == 1 and "deep.json" in err


def test_memory_that_is_not_there_is_one_line(capsys, monkeypatch):
    def greedy(options):
        raise MemoryError

    monkeypatch.setitem(cli.RUN, "generate", greedy)
    assert called(capsys, "generate", "x") == (
        1, "", "npllama generate: out of memory; ask for less\n"
    )  # fmt: skip


@pytest.mark.parametrize("code, words, message", WRONG)
def test_what_is_wrong_gets_one_line_and_its_exit_code(capsys, code, words, message):
    got, out, err = called(capsys, *words)
    assert got == code and message in err and out == ""
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_bytes_that_are_not_text_get_one_line():
    code, _, err = run("generate", stdin=b"\xff\xfe")
    assert code == 2 and "not UTF-8" in err and len(err.strip().splitlines()) == 1


def test_what_the_caller_has_closed_is_no_surprise(capsys, monkeypatch):
    words = ("--max-new-tokens", "3", "--temperature", "0")
    monkeypatch.setattr(sys, "stdin", None)
    assert called(capsys, "generate", *words)[0] == 2
    assert called(capsys, "generate", "Once", *words)[0] == 0
    assert called(capsys, "chat", *words)[:2] == (0, "")
    monkeypatch.setattr(sys, "stderr", None)
    assert called(capsys, "generate", "Once", *words)[1] == "Once upon a time\n"
    monkeypatch.setattr(sys, "stdout", None)
    assert main(("generate", "Once", *words)) == 0


def test_a_terminal_without_the_signs_shows_others(monkeypatch):
    for name in ("stdout", "stderr"):
        narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, name, narrow)
    # Where the system says nothing of UTF-8, this is how "é" comes.
    words = ("generate", "\udcc3\udca9 Once", "--max-new-tokens", "2")
    assert main(words) == 0
    assert sys.stdout.buffer.getvalue().startswith(b"? Once")


@pytest.mark.parametrize(
    "words",
    [("--echo",), ("--echo", "--num-beams", "2"), ("--best-of", "3"), ("--stop", "x")],
)
def test_the_prompt_is_shown_once(capsys, words):
    code, out, _ = called(capsys, "generate", "Once", "--max-new-tokens", "3", *words)
    assert code == 0 and out.count("Once") == 1


def test_tokens_that_come_together_are_not_timed_apart():
    from npllama.cli.timing import Stopwatch
    from npllama.generation.generate import Piece

    def rounds():
        for _ in range(2):
            time.sleep(2e-3)
            yield from [Piece(5, "", None)] * 3

    watch = Stopwatch(4)
    assert len(list(watch.time(rounds()))) == 6
    statistics = watch.statistics()
    assert statistics["decode_tokens_per_second"] < 3 / 2e-3
    alone = Stopwatch(4)
    assert len(list(alone.time([Piece(5, "", None)] * 3))) == 3
    assert alone.statistics()["decode_tokens_per_second"] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_peak_of_memory_is_not_that_of_the_process_that_started_it():
    large = b"1" * 240_000_000
    code = "from npllama.cli.timing import peak_memory_mb as mb; print(mb())"
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 10 < float(done.stdout) < len(large) / 1e6


def test_a_chat_takes_an_assistant(capsys, monkeypatch):
    import npllama
    from npllama.cli import chat as cli

    asked = []
    monkeypatch.setattr(cli, "ask", iter(["Once", None]).__next__)
    monkeypatch.setattr(cli, "pieces", lambda *given: asked.append(given[-1]) or ())
    words = ("chat", "--assistant", "stories-draft")
    assert called(capsys, *words)[0] == 0
    draft = npllama.load("stories-draft")
    assert asked[0].assistant.config == draft.config


def test_a_reader_that_goes_away_is_no_error_message():
    words = f"{sys.executable} -m npllama generate Once --seed 1 | head -c 5"
    done = children.run(["bash", "-c", words], capture_output=True, cwd=ROOT)
    assert done.stdout == b"Once "[:5] and b"Traceback" not in done.stderr


#  ---- special tokens and ids -------------------------------------------------

GREEDY = ("--temperature", "0", "--max-new-tokens", "6", "--json")


def texts_of(capsys, *words):
    """Prompt tokens and new tokens of a greedy run."""
    code, out, err = called(capsys, "generate", *words, *GREEDY)
    assert code == 0, err
    (text,) = json.loads(out)["texts"]
    return text["prompt_tokens"], text["tokens"]


def test_special_tokens_of_a_prompt_are_found_where_they_are_allowed(capsys):
    import npllama

    tokenizer = npllama.load("stories").tokenizer
    spelled, _ = texts_of(capsys, "Once</s>")
    assert spelled == tokenizer.encode("Once</s>") and tokenizer.eos_id not in spelled
    ended = tokenizer.encode("Once", eos=True)
    for words in (("--special",), ("--allowed-special", "</s>")):
        assert texts_of(capsys, "Once</s>", *words)[0] == ended
    assert texts_of(capsys, "Once</s>", "--allowed-special", "<s>")[0] == spelled


def test_a_prompt_may_be_token_ids(capsys):
    import npllama

    ids = npllama.load("stories").tokenizer.encode("Once upon a time")
    expected = texts_of(capsys, "Once upon a time")
    for written in (",".join(map(str, ids)), str(ids), " ".join(map(str, ids))):
        assert texts_of(capsys, "--tokens", written) == expected
    words = ("generate", "--tokens", str(ids), *GREEDY[:-1])
    assert called(capsys, *words)[1].startswith("<s>Once upon a time")


def test_generate_and_stream_take_special_tokens_too():
    import npllama

    model = npllama.load("stories")
    config = npllama.GenerationConfig(allowed_special="all", max_new_tokens=3)
    text = npllama.generate(model, "Once</s>", config)
    assert text.prompt_tokens == model.tokenizer.encode("Once", eos=True)
    assert "".join(npllama.stream(model, "Once</s>", config)) == text.text
    one = npllama.GenerationConfig(allowed_special="</s>", max_new_tokens=3)
    assert one.allowed_special == ("</s>",)
    assert npllama.generate(model, "Once</s>", one) == text
    with pytest.raises(ValueError, match='names of special tokens, or "all"'):
        npllama.GenerationConfig(allowed_special=[5])


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "place, shown", [(Terminal, r"a\x1b[2Jb\x9b\n\x07"), (io.StringIO, 0)]
)
def test_control_characters_are_shown_on_a_terminal_and_left_in_a_pipe(
    monkeypatch, place, shown
):
    from npllama.cli.show import show

    text = "a\x1b[2Jb\x9b\n\x07"
    monkeypatch.setattr(sys, "stdout", place())
    show(text)
    written = sys.stdout.getvalue()
    assert written == (shown.replace(r"\n", "\n") if shown else text)


#  ---- chat -------------------------------------------------------------------


def test_chat_answers_every_turn_and_ends_with_the_input():
    words = ("chat", "--max-new-tokens", "5", "--seed", "1")
    code, out, err = run(
        *words, stdin="Once\nupon a time\n\n/reset\nOnce\n/quit\nnever\n"
    )
    assert code == 0 and len(out.strip().splitlines()) == 3
    assert "Traceback" not in err


def test_chat_goes_on_from_its_cache(capsys, monkeypatch):
    """Two turns give what one prefill of all their tokens gives."""
    import numpy as np

    import npllama
    from npllama.cli import chat as cli

    model = npllama.load("stories")
    talk = cli.Conversation(model, "plain", None)
    config = npllama.GenerationConfig(max_new_tokens=4)
    cli.answer(talk, "Once upon", config, np.random.default_rng(0))
    held = int(talk.cache.length[0])
    assert held == len(talk.tokens) - 1  # the last token has not been run yet
    cli.answer(talk, "a time", config, np.random.default_rng(0))
    prompt, new = talk.tokens[:-4], talk.tokens[-4:]
    assert npllama.generate(model, prompt, config).tokens == new


def test_a_turn_without_a_token_is_said_and_the_talk_goes_on(capsys):
    """As of a template that writes nothing, or of bytes that have no token."""
    from dataclasses import replace

    from npllama.cli import chat as cli

    model = npllama.load("stories-draft")
    tokenizer = replace(model.tokenizer, chat_template="{{ '' }}")
    talk = cli.Conversation(model._replace(tokenizer=tokenizer), "template", None)
    config = npllama.GenerationConfig(max_new_tokens=2)
    cli.answer(talk, "Once", config, np.random.default_rng(0))
    printed = capsys.readouterr()
    assert printed.out == "" and talk.tokens == talk.dialog == []
    assert printed.err == "npllama: the turn is empty: none of it has a token\n"


def talked(stream, turns, monkeypatch, max_new_tokens=6):
    """A conversation with the model that ships, always with the same chance."""
    import numpy as np

    import npllama
    from npllama.cli import chat as cli

    monkeypatch.setattr(cli, "show", lambda text: None)
    model = npllama.load("stories")
    talk = cli.Conversation(model, "plain", None, stream)
    config = npllama.GenerationConfig(max_new_tokens=max_new_tokens)
    lengths = []
    for turn in turns:
        cli.answer(talk, turn, config, np.random.default_rng(0))
        lengths.append(len(talk.tokens))
    return talk, lengths


TURNS = ["Once upon a time", "there was", "a fox", "who lived", "in a house"]


def test_a_chat_in_a_wide_window_is_a_plain_chat(monkeypatch):
    from npllama.contexts.streaming import Stream

    plain, _ = talked(None, TURNS, monkeypatch)
    streamed, _ = talked(Stream(200), TURNS, monkeypatch)
    assert streamed.tokens == plain.tokens
    assert streamed.read == len(streamed.tokens) - 1 == streamed.cache.length[0]


def test_a_chat_goes_on_past_its_window_each_token_read_once(monkeypatch):
    import numpy as np

    from npllama.contexts.streaming import Stream, new_stream_cache
    from npllama.contexts.streaming import streamed as read

    stream = Stream(24, sinks=3, discard=2)
    talk, lengths = talked(stream, 3 * TURNS, monkeypatch)
    assert talk.cache.k.shape[3] == 24 < lengths[-1] / 4
    cache, done = new_stream_cache(talk.model, stream), 0
    for length in lengths:
        # one turn: what was said at once, then the answer's tokens but the last
        for end in [length - 6, *range(length - 5, length)]:
            read(talk.model, talk.tokens[done:end], cache, 3, 2)
            done = end
    np.testing.assert_array_equal(cache.k, talk.cache.k)
    assert cache.length == talk.cache.length


def test_an_answer_that_is_stopped_in_a_stream_is_read_again(monkeypatch):
    import numpy as np

    import npllama
    from npllama.cli import chat as cli
    from npllama.contexts.streaming import Stream

    def stopped(*given):
        yield from list(whole(*given))[:3]
        raise KeyboardInterrupt

    whole = cli.spoken
    talk, _ = talked(Stream(24), TURNS[:1], monkeypatch)
    monkeypatch.setattr(cli, "spoken", stopped)
    config = npllama.GenerationConfig(max_new_tokens=6)
    cli.answer(talk, TURNS[1], config, np.random.default_rng(0))
    assert talk.read == talk.cache.length[0] == 0
    monkeypatch.setattr(cli, "spoken", whole)
    cli.answer(talk, TURNS[2], config, np.random.default_rng(0))
    assert talk.read == len(talk.tokens) - 1


def test_a_chat_that_is_full_says_how_it_would_have_gone_on(monkeypatch, capsys):
    talked(None, ["Once upon a time " * 80] * 2, monkeypatch)
    said = capsys.readouterr().err
    assert "/reset begins anew; --stream-window W talks on past any length" in said


def test_ctrl_c_stops_the_answer_not_the_chat():
    talk = [sys.executable, "-m", "npllama", "chat", "--max-new-tokens", "400"]
    with children.started(
        [*talk, "--eos-token-id", "[]", "--seed", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    ) as process:
        process.stdin.write(b"Once upon a time\n")
        process.stdin.flush()
        process.stdout.read(10)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        out, err = process.communicate(b"Once\n/quit\n", timeout=60)
        assert process.returncode == 0 and b"Traceback" not in err
    stopped, _, whole = out.partition(b"\n")
    assert len(stopped) < len(whole) / 2


def test_a_line_of_any_length_keeps_its_beginning_and_its_end(capsys):
    code, _, err = called(capsys, "generate", "x", "--weights", "a" * 5000 + "/b")
    assert code == 1 and err.startswith("npllama generate: ") and len(err) < 1100
    assert " ... " in err and len(err.splitlines()) == 1


# ---- beyond the positions that a model was made for -----------------------------------


@pytest.fixture
def short(tmp_path):
    """A model of 12 positions, without a tokenizer."""
    config = npllama.preset(
        "stories15m", vocab_size=13, hidden_size=8, intermediate_size=6, head_dim=4,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=12, tie_word_embeddings=True,
    )  # fmt: skip
    rng, shapes = np.random.default_rng(0), tensor_shapes(config).items()
    save(
        tmp_path / "short.npz",
        config,
        [(name, rng.normal(size=shape).astype(np.float32)) for name, shape in shapes],
    )
    return str(tmp_path / "short.npz")


LIKELIEST = ("--temperature", "0", "--eos-token-id", "[]", "--max-new-tokens")


def test_a_text_goes_beyond_the_model_s_positions_if_that_is_asked_for(capsys, short):
    words = ("generate", "--weights", short, "--tokens", "5" + ",5" * 9, "--json")
    found = {}
    for more in ("", "--context 20", "--context 20 --memory 1GB", "--context 11"):
        code, out, err = called(capsys, *words, *LIKELIEST, "4", *more.split())
        (found[more],) = json.loads(out)["texts"]
        told = "[made for 12 positions; what it says beyond them is unproved]\n"
        assert code == 0 and (told in err) == ("20" in more), more
    ends = [(len(f["tokens"]), f["finish_reason"]) for f in found.values()]
    assert ends == [(2, "context"), (4, "length"), (4, "length"), (1, "context")]
    assert found["--context 20"] == found["--context 20 --memory 1GB"]
    assert found["--context 20"]["tokens"][:2] == found[""]["tokens"]
    model = npllama.load(short, context=20)
    again = npllama.generate(model, [5] * 10, max_new_tokens=4, eos_token_id=[])
    assert again.tokens == found["--context 20"]["tokens"]


def test_many_prompts_have_a_context_too(capsys, short, tmp_path):
    (tmp_path / "in").write_text(json.dumps({"tokens": [5] * 11}))
    words = ("generate", "--weights", short, "--prompts", str(tmp_path / "in"))
    for n, context in enumerate([(), ("--context", "13")], 1):
        out = tmp_path / str(n)
        assert called(capsys, *words, *LIKELIEST, "3", "-o", str(out), *context)[0] == 0
        assert len(json.loads(out.read_text())["texts"][0]["tokens"]) == n
    # What was found with another context is not gone on with.
    assert called(capsys, *words, *LIKELIEST, "3", "-o", str(out))[0] == 1


def test_talks_and_perplexities_have_a_context_too(capsys, tmp_path, monkeypatch):
    (tmp_path / "text").write_text("Once upon a time there was a dog. " * 2)
    words = ("perplexity", str(tmp_path / "text"), "--context")
    code, out, err = called(capsys, *words, "16")
    assert code == 0 and "windows of 16" in out and "unproved" not in err
    assert "made for 512 positions" in called(capsys, *words, "700")[2]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time\n"))
    _, out, err = called(capsys, "chat", "--context", "9", *LIKELIEST, "30")
    assert 0 < len(out) < 40 and "unproved" not in err


@pytest.mark.parametrize("command", ["generate x", "chat", f"perplexity {__file__}"])
@pytest.mark.parametrize("context", ["0", "-1", str(2**63)])
def test_a_context_that_cannot_be_is_misuse(capsys, command, context):
    code, _, err = called(capsys, *command.split(), "--context", context)
    assert code == 2 and "--context" in err and len(err.splitlines()) == 1


def test_a_command_of_a_chat_is_not_told_to_the_model():
    words = ("chat", "--max-new-tokens", "4", "--temperature", "0")
    code, out, err = run(*words, stdin="/help\n/rest\nOnce upon\n/quit\n")
    again = run(*words, stdin="Once upon\n/quit\n")
    assert code == 0 and out == again[1]
    assert err.count("/reset begins anew") == 3  # at the beginning, and twice asked


def test_a_temperature_below_zero_is_told_what_zero_is(capsys):
    code, _, err = called(capsys, "generate", "Once", "--temperature", "-1")
    assert (
        code == 2 and "it must be 0, which takes the likeliest token, or above" in err
    )
