"""Jobs in shards, as processes of this machine and as tasks of Ray; some are killed."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from augment.engines import EngineOptions
from augment.enrichment.launch import Machine, Portion, launch, run, shares
from augment.errors import StoreError
from augment.store import Store
from tests.fakes import write_root

HOME = Path(__file__).parents[3]
COUNT = 60


@pytest.fixture
def root(tmp_path):
    write_root(tmp_path / "root", count=COUNT)
    return tmp_path / "root"


def start(root, *options):
    words = ["--root", str(root), "--store", str(root.parent / "store"), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "augment.corpus", *words],
        cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def texts(root):
    return Store(root.parent / "store").texts("corpus")


def below(process):
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def written(root):
    """Texts so far; 0 while there is no store yet."""
    with suppress(StoreError):
        return len(texts(root))
    return 0


def test_one_device_is_one_process_and_several_are_shards():
    assert len(shares("m", "cuda:1")) == 1
    assert len(shares("vllm:m", "all")) == 1, "the server takes all GPUs by itself"
    served = EngineOptions(urls=["http://localhost:1/v1"], device="cpu,cpu")
    assert launch("python -m nothing", (), "m", served, None, None) is None
    first, second = shares("m", "cuda:0,cuda:2")
    assert first.options == ("--device", "cuda:0", "--shard", "0/2")
    assert second.options == ("--device", "cuda:2", "--shard", "1/2")


def test_all_devices_are_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert [one.options[1] for one in shares("m", "all")] == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [one.options for one in shares("m", "all")] == [("--device", "cpu")]


def test_a_shard_is_divided_into_shards_and_a_limit_too():
    """Every number is taken by one part, and by the shard that is divided."""
    parts = [one.options for one in shares("m", "a,b,c", shard="1/4", limit=11)]
    taken = [tuple(map(int, part[3].split("/"))) for part in parts]
    for number in range(60):
        assert sum(number % n == i for i, n in taken) == (number % 4 == 1)
    assert sum(int(part[5]) for part in parts) == 11


def test_the_worst_exit_code_counts(tmp_path, capfd):
    """Best to worst: complete, items failed, cut short, unusable, a full disk, a crash."""
    script = tmp_path / "ends.py"
    script.write_text("import sys; sys.exit(int(sys.argv[1]))")
    ranked = [0, 3, 4, 2, 5, 1]
    parts = [Portion(f"part {code}", (str(code),)) for code in ranked]
    for last, code in enumerate(ranked[1:], 1):
        assert run([str(script)], parts[: last + 1], Machine()) == code
    assert "part 5: exit code 5" in capfd.readouterr().out


def test_two_shards_write_one_store_and_account_for_every_item(root):
    process = start(root, "--model", "scripted:", "--device", "cpu,cpu")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert texts(root).keys() == {f"3:{n}" for n in range(COUNT)}
    generated = [int(number) for number in re.findall(r"(\d+) generated", out)]
    assert len(generated) == 2
    assert min(generated) > 0
    assert sum(generated) == COUNT
    assert re.findall(r"cpu, shard \d/2: exit code 0", out)
    again = start(root, "--model", "scripted:", "--device", "cpu,cpu")
    assert " 0 generated" in again.communicate()[0]


def test_an_item_that_kills_its_worker_fails_alone(root):
    process = start(root, "--model", "scripted:?kill_on=3:7", "--device", "cpu,cpu")
    _, err = process.communicate()
    assert process.returncode == 3, err
    assert "failed: 3:7 (7.png): engine-died" in err
    assert len(texts(root)) == COUNT - 1


def test_a_killed_shard_is_started_again_and_nothing_is_lost(root):
    options = ("--model", "scripted:?delay=0.3", "--batch-size", "1", "--device", "cpu,cpu")
    process = start(root, *options)
    wait_for(lambda: written(root) > 6, process)
    victim = next(one for one in below(process) if "leash" not in " ".join(one.cmdline()))
    victim.kill()
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "starting it again" in err
    assert len(texts(root)) == COUNT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_shards_end_with_the_command(root, number):
    options = ("--model", "scripted:?delay=1", "--batch-size", "1", "--device", "cpu,cpu")
    process = start(root, *options)
    wait_for(lambda: written(root) > 2, process)
    others = below(process)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (4 if number == signal.SIGTERM else -number)
    _, alive = psutil.wait_procs(others, timeout=60)
    assert not alive
    assert 2 < len(texts(root)) < COUNT
    assert start(root, "--model", "scripted:").wait() == 0
    assert len(texts(root)) == COUNT


def test_a_model_that_does_not_exist_is_named(root):
    process = start(root, "--model", str(root / "nothing"), "--device", "cpu,cpu")
    _, err = process.communicate()
    assert process.returncode == 2
    assert "cannot load the model" in err


@pytest.mark.slow
def test_ray_runs_the_shards_on_two_machines_of_which_one_is_killed(root, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(HOME))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.chdir(HOME)
    quiet = {"num_cpus": 0, "include_dashboard": False}
    try:
        cluster = Cluster(initialize_head=True, head_node_args=quiet)
    except Exception as error:  # noqa: BLE001  # Ray's own word for a machine that is too slow
        for child in psutil.Process().children(recursive=True):  # what half started would stay
            if "/ray/" in " ".join(child.cmdline()):
                child.kill()
        pytest.skip(f"no Ray cluster on this machine: {error}")
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        options = ("--model", "ray:scripted:?delay=0.2", "--batch-size", "1", "--replicas", "2")
        process = start(root, *options)
        wait_for(lambda: written(root) > 6, process)
        for info in nodes[0].all_processes["raylet"]:
            os.kill(info.process.pid, signal.SIGKILL)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert len(re.findall(r"on Ray, \d of 2, shard \d/2: exit code 0", out)) == 2
        assert len(texts(root)) == COUNT
    finally:
        ray.shutdown()
        cluster.shutdown()
