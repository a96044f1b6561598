"""What MkDocs does not do by itself: pages where they lie, folders, commands, the Python API.

A hook of ``mkdocs.yml`` (``make docs``). The site has the tree of the repository: links that work
there work here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HOME = Path(__file__).parents[1]

#: Folders without a page of their own that pages link to; each gets a list of its pages.
FOLDERS = {"docs/decisions": "Decisions", "benchmarks/results": "Results"}

#: What pages show or link to; templates and prompts are no pages.
SHOWN = (".md", ".png", ".jpg", ".svg", ".sh", ".css", ".json", ".yaml", ".ipynb")
PARTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/", "notebooks/", "benchmarks/")


def on_files(files: Files, config: Any) -> Files:
    """The pages of the repository, and those that are made here."""
    theme = [file for file in files if file.inclusion.is_excluded() or not _ours(file)]
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=HOME, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    shown = [n for n in names if n.endswith(SHOWN) and (n.startswith(PARTS) or _card(n))]
    pages = [File(name, str(HOME), config.site_dir, True) for name in shown]
    made = {
        f"{folder}/index.md": _listed(folder, title, shown) for folder, title in FOLDERS.items()
    }
    made |= {"commands.md": _commands(), "api.md": _api()}
    pages += [File.generated(config, name, content=text) for name, text in made.items()]
    return Files([*theme, *pages])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to a folder lead to its list."""
    here = posixpath.dirname(page.file.src_uri)

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        return f"]({match[1].rstrip('/')}/index.md)" if target in FOLDERS else match[0]

    return re.sub(r"\]\(([^)#:]+)\)", led, markdown)


def _ours(file: File) -> bool:
    return file.src_dir is not None and Path(file.src_dir) == HOME / "docs"


def _card(name: str) -> bool:
    return "/weights/" in name and name.endswith("README.md")


def _listed(folder: str, title: str, shown: list[str]) -> str:
    pages = [name for name in shown if name.startswith(f"{folder}/") and name.endswith(".md")]
    lines = [f"- [{_title(name)}]({posixpath.relpath(name, folder)})" for name in pages]
    return "\n".join([f"# {title}", "", *lines, ""])


def _title(name: str) -> str:
    """The first heading of a page."""
    text = (HOME / name).read_text(encoding="utf-8")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else name


def _commands() -> str:
    """Every command with its options, as ``--help`` tells them."""
    from augment.__main__ import VERBS
    from augment.__main__ import main as augment
    from retrievers import cli

    kept = json.loads((HOME / "retrievers" / "help.json").read_text(encoding="utf-8"))["answers"]
    parts = ["# Commands", ""]
    for module in ("corpus", "queries"):
        told = _said(importlib.import_module(f"augment.{module}").command, ["--help"])
        parts += _command(f"augment.{module}", told)
    for prog, verbs, run in (
        ("augment", list(VERBS), augment),
        ("retrievers", list(cli.VERBS), cli.main),
    ):
        for verb in verbs:
            told = kept.get(f"{verb} --help") if prog == "retrievers" else None
            words = [verb, "corpus", "--help"] if verb == "retry" else [verb, "--help"]
            text = "\n".join(told) if told else _said(run, words)
            parts += _command(f"{prog} {verb}", text)
    return "\n".join(parts)


def _command(name: str, told: str) -> list[str]:
    return [f"## python -m {name}", "", "```text", told.strip(), "```", ""]


def _said(run: Any, arguments: list[str]) -> str:
    """What a command prints; most end the process behind their help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        run(arguments)
    return "".join(letter for letter in out.getvalue() if letter == "\n" or letter.isprintable())


def _api() -> str:
    """What ``from augment import`` and ``from retrievers import`` give, from the docstrings."""
    parts = ["# Python API", ""]
    for package in ("augment", "retrievers"):
        module = importlib.import_module(package)
        parts += [f"## from {package} import", ""]
        for name in module.__all__:
            place, there = module._MODULE[name]
            parts += [f"::: {package}.{place}.{there}", ""]
    return "\n".join(parts)
