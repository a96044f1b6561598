"""Managed servers: real processes are started, killed, started again and never left behind.

The interpreter that stands in for vLLM's runs our own server under vLLM's command line.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from augment.engines import load_engine, vllm
from augment.engines.base import PACKAGED, fingerprint
from augment.errors import EngineError
from augment.records import Request, Sampling

HOME = Path(__file__).parents[3]

STAND_IN = """#!{python}
import runpy, sys
arguments = sys.argv[1:]
assert arguments[:3] == ["-m", "vllm.entrypoints.cli.main", "serve"], arguments
value = lambda name: arguments[arguments.index(name) + 1]
assert value("--generation-config") == "vllm" and value("--mm-processor-cache-gb") == "0"
if "--die-at-once" in arguments:
    sys.exit("this build has no such option")
sys.argv = ["fake", "--model", value("--served-model-name"), "--port", value("--port")]
sys.argv += ["--latency", "0.02"]
sys.path.insert(0, {home!r})
runpy.run_module("tests.fakes", run_name="__main__")
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable, home=str(HOME)))
    path.chmod(0o755)
    for n in range(5):
        Image.new("RGB", (200 + 40 * n, 130), (50 * n, 9, 9)).save(tmp_path / f"{n}.png")
    return str(path)


def ask(count):
    return [Request(f"1:{n}", "s", f"request {n}", (f"{n % 5}.png",)) for n in range(count)]


def serving(engine):
    """The process of the server, below its leash."""
    (child,) = psutil.Process(engine.leash.pid).children()
    return child


def test_the_server_is_killed_in_the_middle_and_nothing_is_lost(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    engine = load_engine("vllm:flagland-vlm", root=tmp_path, server_python=stand_in, concurrency=4)
    folder = PACKAGED["flagland-vlm"]
    assert (engine.model, engine.revision) == ("flagland-vlm", fingerprint(folder))
    assert engine.settings == {}, "texts are shared with transformers' engine"
    replies = []
    for number, reply in enumerate(engine.generate(ask(60), Sampling(64))):
        replies.append(reply)
        if number == 15:
            serving(engine).kill()
    assert [reply.finish for reply in replies] == ["stop"] * 60
    # Resized by the model's own rule, as the processor in transformers does.
    sizes = [smart_resize(130, 200 + 40 * n, 32, 40_960, 57_344) for n in range(5)]
    for (height, width), reply in zip(sizes, replies, strict=False):
        assert reply.text.endswith(f" of {width} by {height} pixels")
    server = serving(engine)
    engine.close()
    assert not server.is_running()


def test_one_server_has_a_copy_of_the_model_on_each_gpu(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    engine = load_engine(
        "vllm:flagland-vlm", root=tmp_path, server_python=stand_in, max_pixels=50_000
    )
    assert engine.settings == {"min_pixels": 40_960, "max_pixels": 50_000}
    assert all(r.finish == "stop" for r in engine.generate(ask(40), Sampling(64)))
    words = serving(engine).cmdline()
    assert words[words.index("--data-parallel-size") + 1] == "2"
    engine.close()
    told = load_engine(
        "vllm:flagland-vlm", root=tmp_path, server_python=stand_in,
        server_args="--tensor-parallel-size 2",
    )  # fmt: skip
    assert "--data-parallel-size" not in told._command


def test_a_server_that_never_starts_shows_the_end_of_its_log(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(vllm, "STARTS", 1)
    engine = load_engine(
        "vllm:flagland-vlm", root=tmp_path, server_python=stand_in, server_args="--die-at-once"
    )
    with pytest.raises(EngineError, match=r"in vain(.|\n)*this build has no such option"):
        list(engine.generate(ask(1), Sampling(8)))


def test_without_vllm_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install .*\[vllm\].*--server-python"):
        load_engine("vllm:flagland-vlm", root=tmp_path)


def test_a_leashed_process_ends_however_its_holder_dies(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-m', 'augment.engines.leash',"
            " sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True);"
            " time.sleep(600)'], stdin=subprocess.PIPE)\n"
            "time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HOME,
    )
    server = psutil.Process(int(holder.stdout.readline()))
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    _, alive = psutil.wait_procs([server], timeout=10)
    assert not alive, "the server outlived its holder"
