"""Many prompts on a real Dask cluster, a worker of which is killed midway."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import children
import pytest
from needs import needs

distributed = needs("distributed", "dask")
ROOT = Path(__file__).parents[2]
LINES = [{"prompt": "Once upon a time", "max_new_tokens": 20 + i} for i in range(24)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        local_directory=str(folder),
    ) as made:
        yield made
    if before is None:
        del os.environ["PYTHONPATH"]


def command(folder, out, *more):
    (folder / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in LINES))
    words = ["generate", "--weights", "stories", "--prompts", str(folder / "in.jsonl")]
    words += ["-o", str(folder / out), "--rowwise", "--at-once", "2", *more]
    return [sys.executable, "-m", "npllama", *words]


def results(path):
    # What follows the last end of a line is being written.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {json.loads(line)["index"]: json.loads(line) for line in lines}


def tokens(path):
    return {i: r["texts"][0]["tokens"] for i, r in results(path).items()}


def test_a_cluster_gives_the_same_results_though_a_worker_is_killed(cluster, tmp_path):
    here = children.run(command(tmp_path, "here"), capture_output=True, cwd=ROOT)
    assert here.returncode == 0, here.stderr.decode()
    killed = threading.Event()
    with distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))

    def kill_midway():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if results(tmp_path / "there"):
                os.kill(victim, signal.SIGKILL)
                killed.set()
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_midway, daemon=True)
    killer.start()
    address = ["--dask", cluster.scheduler_address]
    there = children.run(
        command(tmp_path, "there", *address), capture_output=True, cwd=ROOT
    )
    killer.join(70)
    assert there.returncode == 0, there.stderr.decode()
    assert killed.is_set()
    assert tokens(tmp_path / "there") == tokens(tmp_path / "here")
    assert set(tokens(tmp_path / "here")) == set(range(len(LINES)))


def test_a_run_that_was_killed_is_continued_by_the_same_command(tmp_path):
    out = tmp_path / "out"
    with children.started(
        command(tmp_path, "out"), cwd=ROOT, stderr=children.subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + 60
        while not results(out) and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
    before = results(out)
    assert before and len(before) < len(LINES)
    done = children.run(command(tmp_path, "out"), capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr.decode()
    after = results(out)
    assert set(after) == set(range(len(LINES)))
    assert {i: after[i] for i in before} == before
    assert f"{len(LINES) - len(before)} results" in done.stderr.decode()


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_two(tmp_path):
    lost = command(tmp_path, "out", "--dask", "tcp://127.0.0.1:9")
    done = children.run(lost, capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "--dask tcp://127.0.0.1:9" in last
    assert "Traceback" not in done.stderr
