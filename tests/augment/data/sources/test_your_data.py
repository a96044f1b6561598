"""The commands of docs/your-data.md, as they stand there, over a few rows of every kind."""

import io
import re
import shlex

import pytest
from PIL import Image

from augment import corpus, queries
from augment.__main__ import main as augment
from augment.data.sources import READERS
from augment.enrichment.pipeline import run_command
from benchmarks.speed.doors import DOCS, documented, steps, write_set
from retrievers.cli import main as retrievers

TOLD = (DOCS / "your-data.md").read_text(encoding="utf-8")
#: Those of a kind's own folder are tried with the kinds.
COMMANDS = [one for one in re.findall(r"^python -m (.+)$", TOLD, re.MULTILINE) if " r/" not in one
            and "=r/" not in one]  # fmt: skip
#: Of the other kinds, candidates have pictures.
TEXTS, ASKED_WITH_PICTURES = {"beir", "bright"}, {"sugarcrepe", "mm_bright"}


def run(line: str) -> int:
    program, *rest = shlex.split(line)
    if program in ("augment.corpus", "augment.queries"):
        side = corpus if program == "augment.corpus" else queries
        return run_command(program, side.plan, rest)
    return (augment if program == "augment" else retrievers)(rest)


def jpeg(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(stream, "JPEG", quality=95)
    return stream.getvalue()


PAIRS = [(text, jpeg(text.split()[0])) for text in ("red bag", "green bag", "blue cup")]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set("table", tmp_path, PAIRS)
    return tmp_path


def test_five_minutes(home, capsys):
    for line in COMMANDS:
        assert run(line) == 0, line
    told = capsys.readouterr().out
    assert told.count("A-1") >= 3  # found by words and by vectors, then by what a model wrote
    assert "A flag with a plain red field." in told
    assert (home / "page/report.html").is_file()


def test_every_kind_of_the_table_ends_in_a_search_over_what_a_model_wrote(home, capsys):
    (home / "answers.json").write_text('["A flag with a plain red field."]')
    assert list(documented()) == list(READERS)
    for kind, (line, _) in documented().items():
        write_set(kind, home, PAIRS)
        assert run(line) == 0, line
        assert run(f"augment validate r/{kind} --texts none") == 0, line
        typed = steps(kind, home, "scripted:answers.json")
        assert kind != "mm_bright" or all(line in TOLD for line in steps(kind, home).values())
        assert ("enrich" not in typed) == (kind in TEXTS)
        for step in typed.values():
            capsys.readouterr()
            assert run(step) == 0, step
        told = capsys.readouterr().out
        if kind in ASKED_WITH_PICTURES:  # "red" is in what was written of the pictures alone
            (found,) = (home / f"b/{kind}").glob("*.local.trec")
            asked = {line.split()[0] for line in found.read_text().splitlines()}
            assert len(asked) == len(PAIRS), kind
        elif kind in TEXTS:
            assert re.search(r"^ +1 .*1$\n +text +red bag", told, re.MULTILINE), (kind, told)
        else:
            first = told[told.index("  1  ") : told.index("  2  ")]
            assert "generated  A flag with a plain red field." in first, kind
