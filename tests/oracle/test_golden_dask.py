"""Recording on a real Dask cluster, a worker of which is killed midway."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import children
import numpy as np
import pytest
from needs import needs
from strategies import DISTINCT
from test_golden_prompts import contents
from test_golden_record import saved

from npllama.golden.prompts import Job, do, record_all
from npllama.golden.record import Wanted, sha256
from npllama.golden.trace import read_golden

distributed = needs("distributed", "dask")
ROOT = Path(__file__).parents[2]


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


def jobs_for(folder, count):
    wanted = Wanted(8, scores=True, floors=("float32", "bfloat16"))
    prompts = [list(range(1, 20 + i)) for i in range(count)]
    return [
        Job("stories", prompt, f"{folder}/{i}.npz", wanted)
        for i, prompt in enumerate(prompts)
    ]


def test_nothing_is_lost_when_a_worker_is_killed_midway(cluster, tmp_path):
    jobs = jobs_for(tmp_path / "cluster", 10)
    with distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
        killed = threading.Event()

        def kill_midway():
            while len(list((tmp_path / "cluster").glob("?.npz"))) < 2:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        threading.Thread(target=kill_midway, daemon=True).start()
        with client.get_executor() as pool:
            record_all(jobs, pool)
        assert killed.is_set()
        # Undisturbed, on the same cluster: its BLAS has one thread, and the last bit
        # of a sum depends on that.
        with client.get_executor() as pool:
            record_all(jobs_for(tmp_path / "whole", 10), pool)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 10


def test_a_job_that_two_workers_do_at_once_gives_one_whole_file(cluster, tmp_path):
    expected = tmp_path / "whole.npz"
    wanted = Wanted(2, floors=("float32",))
    with distributed.Client(cluster) as client:
        do(Job("stories-draft", [1, 5, 9], str(expected), wanted))
        workers = list(client.scheduler_info()["workers"])
        assert len(workers) == 2
        for i in range(10):
            job = Job("stories-draft", [1, 5, 9], f"{tmp_path}/{i}.npz", wanted)
            both = [client.submit(do, job, workers=[w], pure=False) for w in workers]
            assert client.gather(both) == [job.path] * 2
            trace = read_golden(job.path)
            for name, tensor in read_golden(expected).items():
                np.testing.assert_allclose(trace[name], tensor, atol=1e-9)
    assert {p.name for p in tmp_path.iterdir()} == {
        "whole.npz",
        *(f"{i}.npz" for i in range(10)),
    }


def test_workers_that_live_on_see_a_model_that_was_replaced(cluster, tmp_path):
    model = tmp_path / "m.npz"
    jobs = [
        Job(str(model), [1, 5], f"{tmp_path}/{i}.npz", Wanted(0, floors=()))
        for i in range(4)
    ]
    hashes = []
    with distributed.Client(cluster) as client, client.get_executor() as pool:
        for seed, some in ((0, jobs[:2]), (1, jobs[2:])):
            saved(model, DISTINCT, "float32", seed)
            hashes.append(sha256(model))
            record_all(some, pool)
    traces = [read_golden(job.path) for job in jobs]
    found = [trace.meta["weights_sha256"] for trace in traces]
    assert found == [hashes[0]] * 2 + [hashes[1]] * 2
    first, second = traces[0]["prefill/lm_head"], traces[2]["prefill/lm_head"]
    assert not np.allclose(first, second)
    # As a process that never saw the first model.
    again = Job(str(model), [1, 5], f"{tmp_path}/again.npz", Wanted(0, floors=()))
    code = f"from npllama.golden.prompts import *; do({again!r})"
    code = f"from npllama.golden.record import Wanted; {code}"
    children.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    logits = read_golden(again.path)["prefill/lm_head"]
    np.testing.assert_allclose(logits, second, atol=1e-9)


def test_the_command_records_on_a_cluster(cluster, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.write_text("Once upon\nLong ago\n")
    words = ["golden", "record", "stories-draft", "--prompts", str(prompts)]
    words += ["-o", str(tmp_path / "out"), "--floor", "float32", "--dask"]
    command = [sys.executable, "-m", "npllama", *words]
    done = children.run(
        [*command, cluster.scheduler_address], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr.decode()
    assert set(contents(tmp_path / "out")) == {"00000.npz", "00001.npz"}


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_two(tmp_path):
    prompts = tmp_path / "prompts"
    prompts.write_text("Once upon\n")
    words = ["golden", "record", "stories-draft", "--prompts", str(prompts)]
    words += ["-o", str(tmp_path / "out"), "--dask", "tcp://127.0.0.1:9"]
    done = children.run(
        [sys.executable, "-m", "npllama", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
