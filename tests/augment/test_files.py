"""Files that appear whole, and what is told of them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from augment import files
from augment.errors import DataError, StoreError


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the disk, in order: what was synchronised, what was renamed."""
    told = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def record_sync(handle):
        name = Path(f"/proc/self/fd/{handle}").readlink()
        told.append(("fsync", name))
        fsync(handle)

    def record(how):
        def renamed(source, target):
            told.append(("rename", source, target))
            return how(source, target)

        return renamed

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record(replace))
    monkeypatch.setattr(Path, "rename", record(rename))
    return told


def write_bytes(path):
    with files.replacing_path(path) as partial:
        partial.write_bytes(b"text")


WRITERS = {
    "path": write_bytes,
    "text": lambda path: files.write_text(path, "text"),
    "json": lambda path: files.write_json(path, {"a": 1}),
}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are in /proc")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_bytes_are_on_disk_before_the_name_and_the_name_before_the_return(write, tmp_path, calls):
    path = tmp_path / "folder" / "file.txt"
    write(path)
    (first, partial), rename, last = calls
    assert (first, rename, last) == ("fsync", ("rename", partial, path), ("fsync", path.parent))
    assert partial != path
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as stream:
        stream.write({}["new"])
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said_in_the_callers_terms(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below"
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        files.write_text(path, "")
    with pytest.raises(StoreError, match=r"below: cannot be written: (Not a dir|File exists)"):
        files.write_text(path, "", StoreError)
    with pytest.raises(DataError, match="cannot be written"), files.new_folder(path):
        pass


def test_a_folder_appears_filled_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyError), files.new_folder(out) as partial:
        (partial / "half").write_text({}["text"])
    assert not list(tmp_path.iterdir())
    with files.new_folder(out) as partial:
        (partial / "a").write_text("")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    with pytest.raises(DataError, match="exists; remove it"), files.new_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_and_hashes(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"ä": [1, None], "path": Path("x/y")})
    assert path.read_text() == '{\n "ä": [\n  1,\n  null\n ],\n "path": "x/y"\n}\n'
    assert files.read_json(path) == {"ä": [1, None], "path": "x/y"}
    assert files.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("{")
    with pytest.raises(StoreError, match="is not JSON"):
        files.read_json(path, StoreError)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        files.read_json(tmp_path / "none")


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\n \nb\xc2\x85c\xe2\x80\xa8d\nlast")
    assert list(files.text_lines(path)) == [(1, "a"), (4, "b\x85c\u2028d"), (5, "last")]
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match=r"lines:2: is not UTF-8"):
        list(files.text_lines(path))


def test_tables():
    rows = [["a", "1"], ["long", "23"]]
    assert files.aligned(rows) == "a      1\nlong  23"
    assert files.aligned(rows, head=["name", "n"]) == "name   n\n----  --\na      1\nlong  23"
    assert files.markdown(["name", "n"], [["a", 1]]) == "| name | n |\n|---|--:|\n| a | 1 |"
    forged = [["a\nb", "\x1b[2J\u202e"]]
    assert files.aligned(forged) == "a\\nb  \\x1b[2J\\u202e"
    assert files.markdown(["\r", ""], forged).splitlines()[2] == "| a\\nb | \\x1b[2J\\u202e |"


@pytest.mark.parametrize("value", [["\x9b2J", "\x7f", "\u202e\n\t\x1b"], "d\x00e"])
def test_what_is_said_moves_no_cursor_and_json_stays_json(capsys, value):
    files.say(json.dumps(value, ensure_ascii=False, indent=1))
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert json.loads(said) == value


def test_where_the_home_is_meant(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    told = {
        "~": "/h", "~/a": "/h/a", "--out=~/lr=0.1/~": "--out=/h/lr=0.1/~", "--out=~": "--out=/h",
        "scripted:~/a.json": "scripted:/h/a.json", "name=~/a.ckpt": "name=/h/a.ckpt",
        "2 ~ 3": "2 ~ 3", "a~/b": "a~/b", "~nobody-here/a": "~nobody-here/a", "~.5": "~.5",
    }  # fmt: skip
    assert files.homes(list(told)) == list(told.values())
    assert files.homes({"a": [{"b": "~/c"}, 1, None]}) == {"a": [{"b": "/h/c"}, 1, None]}


@pytest.mark.parametrize(
    "begin",
    [
        "from augment.__main__ import main; main(['status', '--store=nowhere'])",
        "from augment.enrichment.command import guarded; guarded(lambda: 0)",
        "from retrievers.cli import main; main(['--help'])",
        "from benchmarks.demo import main; main(['--root=nowhere', '--dry-run'])",
    ],
)
def test_a_terminal_without_unicode_ends_no_command(begin):
    command = [sys.executable, "-c", f"{begin}; print('caf\\u00e9 \\u2013')"]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert ended.stdout.endswith(rb"caf\xe9 \u2013" + b"\n")
