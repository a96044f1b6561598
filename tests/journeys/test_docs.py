"""What docs/python.md shows runs, on a small world, with few steps and a scripted model."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import retrievers

HOME = Path(__file__).parents[2]
PAGE = HOME / "docs" / "python.md"
SMALLER = {
    "countries=600": "countries=200",
    '"flagland-vlm"': '"scripted:"',
    "max_steps=60": "max_steps=2",
    "MBeirData(": "MBeirData(batch_size=8, root=",
}


@pytest.mark.slow
def test_the_worked_examples_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    printed = []
    for number, block in enumerate(blocks, start=1):
        for whole, small in SMALLER.items():
            block = block.replace(whole, small)
        exec(compile(block, f"{PAGE.name}, example {number}", "exec"), names)  # noqa: S102
        printed.append(capsys.readouterr().out)
    tested, found, mined, compared = printed
    assert "success@5" in tested
    assert re.findall(r"^(\d+) [-0-9.]+ \d+:\d+ ", found, re.MULTILINE) == ["1", "2", "3"]
    assert "known positive" in mined
    assert "| first | harder |" in compared
    assert set(names["scores"].means()) == {"success@1", "ndcg@10"}
    assert names["again"].trained_on == names["encoder"].trained_on


def test_what_is_named_is_there():
    assert [name for name in retrievers.__all__ if not hasattr(retrievers, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        retrievers.nothing  # noqa: B018


@pytest.mark.slow
def test_the_site_is_built_and_no_link_leads_nowhere(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"]
    done = subprocess.run(build, cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    commands = (tmp_path / "site" / "commands" / "index.html").read_text()
    assert "--dry-run" in commands
    assert "python -m retrievers compare" in commands
    assert "mine_negatives" in (tmp_path / "site" / "api" / "index.html").read_text()
