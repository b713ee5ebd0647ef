"""Recording on a real Dask cluster, a worker of which is killed midway."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import children
import pytest
from needs import needs
from test_golden_prompts import contents

from npllama.golden.prompts import Job, record_all
from npllama.golden.record import Wanted

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
