"""What stays of a model in memory, how long the rest takes, and guesses made ahead."""

import doctest
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import children
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_contexts_storage import no_thread_of_ours
from test_contexts_storage import written as write_random

import npllama
from npllama.cli.main import main
from npllama.config import Config
from npllama.contexts import offload
from npllama.contexts.ahead import guessing_ahead
from npllama.contexts.offload import (
    Costs,
    at_once,
    best_guesses,
    fit,
    in_turn,
    lru_misses,
    pass_seconds,
    pinned_misses,
    spread,
    tokens_per_scan,
    weight_room,
)
from npllama.contexts.reading import contents
from npllama.contexts.storage import Streamed, read_per_pass
from npllama.decoding.common import Job
from npllama.files.checkpoint import load, locate

shares = st.floats(0, 1)
few = st.integers(0, 12)


def test_examples():
    assert doctest.testmod(offload).failed == 0


# ---- what stays ---------------------------------------------------------------


@pytest.fixture(scope="module")
def stories():
    return contents(locate("stories"))


@given(st.integers(0, 12 * 10**6))
@example(0)
@example(4 * 10**6)
def test_a_plan_keeps_to_its_room_and_no_other_of_its_kind_reads_less(room):
    found = contents(locate("stories"))
    L = len(found.parts) - 1
    try:
        chosen = fit(found, room)
    except ValueError:
        assert weight_room(found, (), 1) > room
        return
    assert chosen.bytes == weight_room(found, chosen.pinned, chosen.buffers) <= room
    if chosen.buffers == 1:
        assert weight_room(found, (), 2) > room
    for n in range(L + 1):
        for head in ((), (L,)):
            other = spread(L, n) + head
            if weight_room(found, other, chosen.buffers) <= room:
                least = read_per_pass(found, chosen.pinned, 1)
                assert least <= read_per_pass(found, other, 1)


def test_a_plan_of_all_reads_nothing_and_one_of_too_little_is_refused(stories):
    everything = fit(stories, 10**9)
    assert everything.pinned == tuple(range(len(stories.parts)))
    with pytest.raises(
        ValueError, match="needs .* GB for a buffer; there are 0.001 GB"
    ):
        fit(stories, 10**6)


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 5))
@example(32, 31, 3)
def test_lru_misses_everything_where_pinning_misses_what_has_no_room(L, room, passes):
    missed = lru_misses(L, room, passes)
    assert missed == (L if room >= L else L * passes)
    assert pinned_misses(L, room, passes) == min(room, L) + max(L - room, 0) * passes


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=9), st.integers(1, 4))
@example([(1.0, 0.5), (1.0, 2.0)], 2)
@example([(0.29171463939138104, 0.3701793456986107), (0.0, 1.0)], 1)  # sums round
def test_a_pass_takes_the_longer_of_reading_and_computing_at_least(both, buffers):
    reads, computes = map(list, zip(*both))
    took = pass_seconds(reads, computes, buffers)
    longer, both_in_turn = max(sum(reads), sum(computes)), sum(reads) + sum(computes)
    assert longer - 1e-9 <= took <= both_in_turn + 1e-9
    if buffers == 1:
        assert took == pytest.approx(sum(reads) + sum(computes))


# ---- with a draft -------------------------------------------------------------


@given(shares, few)
@example(1.0, 4)
@example(0.5, 2)
def test_tokens_of_a_scan_are_a_geometric_sum(a, g):
    expected = g + 1 if a == 1 else (1 - a ** (g + 1)) / (1 - a)
    assert tokens_per_scan(a, g) == pytest.approx(expected)


def simulated(costs, a, g, rounds, rng):
    """Seconds per token of many rounds, with a draft that guesses on."""
    seconds, tokens, ready = 0.0, 0, False
    for _ in range(rounds):
        if not ready:
            seconds += g * costs.draft
        seconds += max(costs.scan, (g + 1) * costs.draft)
        kept = int((rng.random(g) < a).cumprod().sum())
        tokens += kept + 1
        ready = kept == g and rng.random() < a
    return seconds / tokens


@pytest.mark.parametrize(("a", "g"), [(0.9, 3), (0.5, 2), (1.0, 5), (0.0, 4)])
def test_guessing_on_takes_what_a_simulation_of_it_takes(a, g):
    costs = Costs(1.0, 0.3)
    found = simulated(costs, a, g, 20000, np.random.default_rng(0))
    assert at_once(costs, a, g) == pytest.approx(found, rel=0.02)
    assert in_turn(costs, a, g) == pytest.approx(
        (g * 0.3 + 1.0) / tokens_per_scan(a, g)
    )


@given(shares)
def test_no_other_number_of_guesses_is_faster(a):
    costs = Costs(1.8, 0.06)
    best = best_guesses(at_once, costs, a)
    assert all(at_once(costs, a, best) <= at_once(costs, a, g) for g in range(30))


def test_the_case_of_the_source_is_a_table(capsys):
    assert main(["offload"]) == 0
    told = capsys.readouterr().out
    assert "7.7 GB in 3.5 GB, the rest at 4 GB/s: 1.05 s per token at least." in told
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in told.splitlines()
        if line.startswith("|")
    ]
    assert ["31 of 32 layers", "32", "1", "1.93", "0.06"] in rows
    assert ["0.90", "16", "8.33", "0.33", "14", "7.94", "0.31", "3.38x"] in rows
    assert main(["offload", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scan_seconds"] == pytest.approx(1.8)


# ---- guesses made ahead -------------------------------------------------------


def no_draft_goes_on():
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_a_draft_that_guesses_on_changes_no_text_and_leaves_no_thread(seed):
    model, draft = npllama.load("stories"), npllama.load("stories-draft")
    config = npllama.GenerationConfig(
        max_new_tokens=24, do_sample=seed is not None, num_assistant_tokens=3
    )
    texts = []
    for _ in range(2):
        with guessing_ahead() as drafts:
            helpers = npllama.Helpers(assistant=draft, guess=drafts)
            rng = np.random.default_rng(seed or 0)
            found = npllama.stream(model, "Once upon", config, rng, helpers=helpers)
            texts.append("".join(found))
            rounds = drafts.made[0].rounds
    assert texts[0] == texts[1]
    if seed is None:
        assert texts[0] == npllama.generate(model, "Once upon", config).text
    assert rounds.drafted >= rounds.kept > 0 and rounds.rounds > 3
    no_draft_goes_on()


def test_guesses_made_ahead_are_those_of_the_text_as_it_went_on():
    draft = npllama.load("stories-draft")
    prompt = draft.tokenizer.encode("Once upon a time")

    def greedy(text, most):
        config = npllama.GenerationConfig(max_new_tokens=most, eos_token_id=())
        return npllama.generate(draft, text, config).tokens

    with guessing_ahead() as drafts:
        ahead = drafts(Job(draft, prompt, 60))
        text = list(prompt)
        # what follows the guesses: the token that was expected, or another
        for other in (False, True, False, True, True, False):
            found = ahead(text, 3, None)
            assert found.tokens == greedy(text, 3)
            expected = greedy([*text, *found.tokens], 1)[0]
            text += [*found.tokens, (expected + other) % draft.config.vocab_size]
        assert ahead.rounds.ready >= 2
    no_draft_goes_on()


# ---- the command line ---------------------------------------------------------


def test_a_model_within_a_memory_writes_the_same_text(capsys):
    words = [
        "generate",
        "Once upon a time",
        "--temperature",
        "0",
        "--max-new-tokens",
        "9",
    ]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--memory", "4GB", "--assistant", "stories-draft"]) == 0
    out, err = capsys.readouterr()
    assert out == plain
    assert "[storage: 5 of 5 layers" in err and "read per token" in err
    assert "[draft: " in err
    no_thread_of_ours()
    no_draft_goes_on()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--memory", "3 potatoes"], 2, "bytes, such as 3GB or 512MiB"),
        (["--memory", "1MB"], 1, "for a buffer; there are 0.000 GB for weights"),
        (["--memory", "4GB", "--save-cache", "c.npz"], 2, "not with --save-cache"),
    ],
)
def test_a_memory_that_cannot_be_is_one_line(words, code, said, capsys, tmp_path):
    assert ended(["generate", "Once", *words]) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def ended(words):
    try:
        return main(words)
    except SystemExit as error:
        return error.code


# A model of 210 MB, whose head and embedding are small beside its layers.
LARGE = Config(256, 512, 4096, 6, 8, 8, 64, 512, 1e-5)


def written(folder):
    """A random model in a file, and its size."""
    path = Path(folder) / "large.npz"
    write_random(path, LARGE, 0)
    return path, path.stat().st_size


def within(path, memory, *words):
    """A command within a memory, in a process of its own."""
    tokens = ["--tokens", "1,2,3", "--max-new-tokens", "4", "--eos-token-id", "[]"]
    return [sys.executable, "-m", "npllama", "generate", "--weights", str(path),
            *tokens, "--temperature", "0", "--json", "--memory", str(memory), *words]  # fmt: skip


@pytest.mark.slow
def test_memory_stays_within_the_budget_and_bytes_are_as_predicted(tmp_path):
    path, size = written(tmp_path)
    assert size > 150e6
    budget = 230 * 10**6  # Python, NumPy and the libraries take half of it
    done = children.run(within(path, budget), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    peak = re.search(r"peak memory ([\d,]+) of 230 MB", done.stderr)[1]
    assert int(peak.replace(",", "")) <= 230
    loaded = npllama.generate(
        load(path), [1, 2, 3], max_new_tokens=4, eos_token_id=(), do_sample=False
    )
    assert json.loads(done.stdout)["texts"][0]["tokens"] == loaded.tokens
    read = float(re.search(r"([\d.]+) GB read per token", done.stderr)[1])
    with Streamed(path) as layers:
        most = read_per_pass(layers.contents, (), 1) / 1e9
    assert 0 < read < most


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_reading_is_one_line_and_the_process_ends(tmp_path, number):
    path, _ = written(tmp_path)
    words = within(path, 230 * 10**6)
    words[words.index("4")] = "400"
    words.remove("--json")
    with children.started(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(4)  # it reads layers now, for a minute
        assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == "npllama generate: interrupted"
    assert b"Traceback" not in err


@pytest.mark.slow
def test_a_file_that_is_cut_is_one_line(tmp_path, capsys):
    path, size = written(tmp_path)
    with open(path, "r+b") as file:
        file.truncate(size // 2)
    words = within(path, 10**9)[3:]
    assert ended(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "large.npz" in err
    no_thread_of_ours()
