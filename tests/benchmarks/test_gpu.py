"""The program for a GPU, tried on a CPU at tiny size."""

import json
import math
import re
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import parts, shapes
from benchmarks.gpu.__main__ import measure


@pytest.fixture
def bench(tmp_path):
    return parts.Bench(torch.device("cpu"), parts.SCALES["tiny"], tmp_path, 0.0)


def test_a_rate_counts_whole_rounds_after_one_that_is_not_counted(bench):
    calls = []
    assert bench.rate(lambda: calls.append(0), 5) > 0
    assert len(calls) == 2


@pytest.mark.slow
def test_every_part_gives_figures(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    measure(out, "tiny", each=0.0, device="cpu")
    told = json.loads(out.read_text())
    assert list(told["parts"]) == [part.__name__ for part in parts.PARTS]
    for name, figures in told["parts"].items():
        assert "failed" not in figures, (name, figures)
        rates = {key: value for key, value in figures.items() if "/s" in key}
        assert rates, name
        assert all(value > 0 and math.isfinite(value) for value in rates.values()), (name, rates)
    printed = capsys.readouterr().out
    assert all(f"{part.__name__} (" in printed for part in parts.PARTS)
    assert told["parts"]["enrich_small"]["tokens written/s"] == pytest.approx(
        4 * told["parts"]["enrich_small"]["images/s"]
    )


def test_a_part_that_fails_is_named_and_the_next_begins(tmp_path, monkeypatch):
    def broken(bench):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("benchmarks.gpu.__main__.PARTS", (broken, parts.matrix))
    told = measure(tmp_path / "gpu.json", "tiny", each=0.0, device="cpu")
    assert told["parts"]["broken"]["failed"] == "RuntimeError: no kernel image"
    assert told["parts"]["matrix"]["TFLOP/s"] > 0
    assert json.loads((tmp_path / "gpu.json").read_text()) == told


def test_no_part_begins_when_the_time_is_over(tmp_path):
    told = measure(tmp_path / "gpu.json", "tiny", seconds=-1.0, only=["matrix"], device="cpu")
    assert told["parts"]["matrix"]["left out"] == "-1 s were over"
    with pytest.raises(SystemExit, match="no part nothing; there are matrix, "):
        measure(tmp_path / "gpu.json", "tiny", only=["nothing"], device="cpu")


@pytest.mark.parametrize(("shape", "billions"), [("qwen3-vl-2b", 2.13), ("qwen3-vl-8b", 8.77)])
def test_shapes_have_the_published_number_of_parameters(shape, billions):
    """As the models' pages on the Hub count them."""
    ids = {f"<|{name}|>": n for n, name in enumerate(
        ("image_pad", "video_pad", "vision_start", "vision_end"))}  # fmt: skip
    with torch.device("meta"):
        model = shapes.AutoModelForImageTextToText.from_config(shapes.config_of(shape, ids))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)


def test_wheels_to_bring_are_locked():
    lock = Path("requirements.lock").read_text()
    names = re.findall(r"^[\w-]+$", Path("benchmarks/gpu/wheels.txt").read_text(), re.M)
    assert len(names) > 5
    for name in names:
        assert re.search(rf"^{name.replace('_', '[-_]')}==", lock, re.M | re.I), name
        assert metadata.version(name)


@pytest.mark.slow
def test_what_does_not_fit_is_told_and_parts_are_measured_alone(tmp_path, monkeypatch):
    rate = parts.Bench.rate

    def short_of_memory(bench, work, items=1):
        if items == parts.SCALES["tiny"].pairs:
            raise torch.OutOfMemoryError
        return rate(bench, work, items)

    monkeypatch.setattr(parts.Bench, "rate", short_of_memory)
    measure(tmp_path / "gpu.json", "tiny", each=0.0, only=["clip", "enrich_small"], device="cpu")
    told = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert told["clip"]["out of memory at once"] == parts.SCALES["tiny"].pairs
    assert "failed" not in told["enrich_small"]
