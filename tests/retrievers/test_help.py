"""What ``--help`` and ``--print_config`` are kept to answer is what the parsers say.

``python -m tests.retrievers.test_help`` asks the parsers and writes the answers anew.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from augment.__main__ import VERBS as AUGMENT
from retrievers.cli import VERBS, kept_answer, main, run, versions
from retrievers.data.named import expand

FILE = Path(str(resources.files("retrievers"))) / "help.json"
CONFIGS = sorted(path.stem for path in FILE.parent.glob("configs/*/*.yaml") if path.stem != "bm25")
#: Verbs whose modules import torch.
HEAVY = (
    "fit", "validate", "test", "embed", "mine", "rerank", "audit", "bm25", "export", "mmeb",
    "leaks", "budget", "doubts", "loop", "pairs",
)  # fmt: skip


def questions():
    configs = [f"fit --config={name} --print_config" for name in CONFIGS]
    return [*(f"{verb} --help" for verb in HEAVY), "fit --print_config", *configs]


def asked():
    """Every question and its answer, from the parsers."""
    answers = {}
    for question in questions():
        with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
            run(expand(question.split()))
        answers[question] = told.getvalue().split("\n")
    return {"versions": versions(), "answers": answers}


def ask():
    """The same, by a process in which nothing else has been imported."""
    command = [sys.executable, "-m", "tests.retrievers.test_help"]
    environment = {**os.environ, "COLUMNS": "100", "ASK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_the_answers_are_those_of_the_parsers():
    kept = json.loads(FILE.read_text())
    if kept["versions"] != versions():
        pytest.skip(f"kept for {kept['versions']}; these are asked themselves")
    now = ask()["answers"]
    stale = [question for question in questions() if kept["answers"].get(question) != now[question]]
    assert not stale, "run python -m tests.retrievers.test_help"
    assert set(kept["answers"]) == set(questions())


def test_other_versions_and_other_questions_are_asked_themselves(tmp_path, monkeypatch, capsys):
    assert kept_answer(["export", "-h"]).startswith("usage: python -m retrievers export")
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out == kept_answer(["export", "--help"])
    assert not kept_answer(["fit", "--config=flagland", "--out=x", "--print_config"])
    assert kept_answer(["fit", "--config=flagland", "--print_config"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flagland").touch()
    assert not kept_answer(["fit", "--config=flagland", "--print_config"])
    monkeypatch.setattr("retrievers.cli.versions", dict)
    assert not kept_answer(["export", "--help"])


def test_the_list_of_commands_has_each_once(capsys):
    assert main([]) == 0
    named = re.findall(r"^  (\w+ \w+)  ?", capsys.readouterr().out, re.MULTILINE)
    verbs = [f"retrievers {verb}" for verb in VERBS] + [f"augment {verb}" for verb in AUGMENT]
    assert sorted(named) == sorted(verbs)


if __name__ == "__main__":
    if "ASK" in os.environ:
        sys.stdout.write(json.dumps(asked()))
    else:
        FILE.write_text(json.dumps(ask(), indent=0, ensure_ascii=False) + "\n")
