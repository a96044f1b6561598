"""The commands of docs/your-data.md, as they stand there, over a few rows of every kind."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from augment import corpus
from augment.__main__ import main as augment
from augment.data.sources import READERS
from augment.enrichment.pipeline import run_command
from retrievers.cli import main as retrievers
from tests.augment.data.sources import test_sources as made

PAGE = (Path(__file__).parents[4] / "docs/your-data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python -m (.+)$", PAGE, re.MULTILINE)
KINDS = re.findall(r"^\| `(\w+)` .*`python -m (.+)` \| 0 \|$", PAGE, re.MULTILINE)


def run(line: str) -> int:
    program, *rest = shlex.split(line)
    if program == "augment.corpus":
        return run_command(program, corpus.plan, rest)
    return (augment if program == "augment" else retrievers)(rest)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, colour in enumerate(("red", "green", "blue")):
        path = tmp_path / f"photos/{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), colour).save(path)
    rows = ["sku,title,photo", "A-1,red bag,0.png", "A-2,green bag,1.png", "B-1,blue cup,2.png"]
    made.put(tmp_path / "products.csv", "\n".join(rows) + "\n")
    return tmp_path


def test_five_minutes(home, capsys):
    for line in COMMANDS:
        assert run(line) == 0, line
    told = capsys.readouterr().out
    assert told.count("A-1") >= 3  # found by words and by vectors, then by what a model wrote
    assert "A flag with a plain red field." in told
    assert (home / "page/report.html").is_file()


def test_every_kind_of_the_table(home):
    makers = {"set": made.saved_set, "beir": made.beir_files, "urban": made.urban_files,
              "sugar": made.sugar_files, "cirr": made.cirr_files, "fiq": made.fashioniq_files,
              "circo": made.circo_files, "bright": made.bright_files,
              "mmeb": made.mmeb_files, "genecis": made.genecis_files, "share": made.sharegpt4v_file,
              "visdial": made.visdial_files, "vist": made.vist_file, "mm": made.mm_bright_files,
              "mteb": made.mteb_files}  # fmt: skip
    for name, make in makers.items():
        make(home / name)
    turn = [{"role": "user", "content": "a red bag"}]
    made.put(home / "swift.jsonl", [{"messages": turn, "positive_messages": [turn]}])
    passage = {"docid": "d1", "title": "Bags", "text": "red"}
    pair = {"query_id": "1", "query": "red?", "positive_passages": [passage]}
    made.put(home / "tevatron.jsonl", [{**pair, "negative_passages": []}])
    made.coco(home / "coco").rename("coco/captions.json")
    made.flickr(home / "flickr").rename("flickr/dataset.json")
    (made.tar_file(home) / "a.tar.gz").rename("shards.tar")
    assert [kind for kind, _ in KINDS] == list(READERS)
    for kind, line in KINDS:
        assert run(line) == 0, line
        assert run(f"augment validate r/{kind} --texts none") == 0, line
