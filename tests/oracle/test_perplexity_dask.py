"""``npllama perplexity`` on a real Dask cluster finds what one process finds."""

import json
import os
import sys
from pathlib import Path

import children
import pytest
from needs import needs

distributed = needs("distributed", "dask")
ROOT = Path(__file__).parents[2]
TEXT = "Once upon a time there was a girl called Lily. She had a red ball. " * 8


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=str(folder),
        ) as made:
            yield made


def run(folder, *more):
    (folder / "text.txt").write_text(TEXT)
    words = ["perplexity", str(folder / "text.txt"), "--length", "24", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return children.run(
        [sys.executable, "-m", "npllama", *words, *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.parametrize("convention", ["strided", "llama.cpp"])
def test_a_cluster_finds_the_same_surprise_at_every_token(
    cluster, tmp_path, convention
):
    how = ["--convention", convention]
    here = run(tmp_path, *how)
    there = run(tmp_path, *how, "--dask", cluster.scheduler_address)
    assert here.returncode == there.returncode == 0, there.stderr
    found = json.loads(there.stdout)
    assert len(found["windows"]) > 5 and len(found["counted"]) > 50
    assert found == json.loads(here.stdout)


def test_the_windows_ran_on_the_workers(cluster, tmp_path):
    with distributed.Client(cluster) as client:
        before = client.run(len_of_cache)
        done = run(tmp_path, "--dask", cluster.scheduler_address)
        assert done.returncode == 0, done.stderr
        after = client.run(len_of_cache)
    assert sum(after.values()) > sum(before.values())


def len_of_cache():
    """How many windows a worker has asked its model for."""
    from npllama.cli.perplexity import _model

    info = _model.cache_info()
    return info.hits + info.misses


def test_a_cluster_that_is_not_there_is_one_line_and_exit_code_two(tmp_path):
    lost = run(tmp_path, "--dask", "tcp://127.0.0.1:9")
    assert lost.returncode == 2 and "--dask tcp://127.0.0.1:9" in lost.stderr
    assert "Traceback" not in lost.stderr
