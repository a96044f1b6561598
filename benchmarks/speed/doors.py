"""Minutes from other people's files to a search over enriched text, kind by kind.

Pictures and texts of a root become a set of each kind, as ``docs/formats.md`` lays it out; the
command of ``docs/your-data.md`` imports it, the packaged model describes its pictures, BM25 finds
what it wrote, each a program of its own. A run that was killed goes on with the next kind.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from augment.data.images import read_picture
from augment.data.items import RootItems
from augment.data.pools import open_queries
from augment.data.root import DataRoot
from augment.data.sources.forms import add_member
from augment.files import read_json, write_json
from benchmarks.speed.harness import RESULTS, Page, Row, cost

DOCS = Path(__file__).parents[2] / "docs"
_COMMAND = re.compile(r"^\| `(\w+)` .*`python -m (.+)` \| 0 \|$", re.MULTILINE)


def documented() -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Kind -> its command without ``python -m``, and the layout of a set of it, as documented."""
    commands = dict(_COMMAND.findall((DOCS / "your-data.md").read_text(encoding="utf-8")))
    block = (DOCS / "formats.md").read_text(encoding="utf-8").partition("```yaml\n")[2]
    layouts = yaml.safe_load(block.partition("```")[0])
    return {kind: (command, layouts[kind]) for kind, command in commands.items()}


def write_set(kind: str, home: Path, pairs: Sequence[tuple[str | None, bytes]]) -> None:
    """Write texts and JPEG files as a set of a kind, under the names of its documented command."""
    said = [
        {"n": n, "next": n % len(pairs) + 1, "text": text, "picture": picture,
         "words": " ".join((text or "").split()[:5])}
        for n, (text, picture) in enumerate(pairs, start=1)
    ]  # fmt: skip
    for name, content in _of_all(documented()[kind][1], said).items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tar":
            with tarfile.open(path, "w") as tar:
                for member, data in content.items():
                    add_member(tar, member, _bytes(data, ""))
        elif path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(content), path)
        elif path.suffix:
            path.write_bytes(_bytes(content, path.suffix))
        else:
            from datasets import Dataset, DatasetDict, Features, Image, Value

            features = Features({"text": Value("string"), "image": Image()})
            DatasetDict(train=Dataset.from_list(content, features)).save_to_disk(str(path))


def _bytes(content: Any, ending: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if ending == ".jsonl":
        content = "\n".join(map(json.dumps, content))
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def _of_all(form: Any, said: Sequence[Mapping[str, Any]]) -> Any:
    """What a layout stands for: a list, a key with {n} and a second line are of each pair."""
    if isinstance(form, list):
        return [_of(form[0], one) for one in said]
    if isinstance(form, str):
        head, _, line = form.partition("\n")
        return "\n".join([head, *(_of(line, one) for one in said)]) if "{n" in line else form
    many = {_of(key, one): _of(form[key], one) for one in said for key in form if "{n" in key}
    return many | {key: _of_all(form[key], said) for key in form if "{n" not in key}


def _of(form: Any, one: Mapping[str, Any]) -> Any:
    if isinstance(form, str):
        return one[form[1:]] if form.startswith("=") else form.format(**one)
    if isinstance(form, Mapping):
        return {key: _of(value, one) for key, value in form.items()}
    return [_of(value, one) for value in form] if isinstance(form, list) else form


def steps(kind: str, home: Path, model: str = "flagland-vlm") -> dict[str, str]:
    """What a user types after the import into ``r/KIND``: name of a step -> command.

    Pictures of candidates are described, else those of queries; texts are searched as they are.
    """
    root, about = f"r/{kind}", f"--root r/{kind} --store s/{kind}"
    if RootItems(home / root, "corpus").with_picture():
        return {"enrich": f"augment.corpus {about} --model {model}",
                "search": f"retrievers search {about} --checkpoint bm25 'red field'"}  # fmt: skip
    if not RootItems(home / root, "query").with_picture():
        return {"search": f"retrievers search --root {root} --checkpoint bm25 'red field'"}
    shown = f"--out=b/{kind} --query.view=replace --query.store=s/{kind}"
    return {"enrich": f"augment.queries {about} --model {model}",
            "search": f"retrievers bm25 --config=bm25 --root={root} {shown}"}  # fmt: skip


def _run(home: Path, line: str) -> None:
    command = [sys.executable, "-m", *shlex.split(line)]
    subprocess.run(command, cwd=home, stdout=subprocess.DEVNULL, check=True)  # noqa: S603


def _measured(kind: str, pairs: Sequence[tuple[str | None, bytes]]) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="doors-") as folder:
        home = Path(folder)
        write_set(kind, home, pairs)
        done = {"import": cost(partial(_run, home, documented()[kind][0]))}
        for name, line in steps(kind, home).items():
            done[name] = cost(partial(_run, home, line))
    return {name: {"seconds": one.seconds, "cpu": one.cpu} for name, one in done.items()}


def measure(
    source: Path,
    items: int = 200,
    kinds: Sequence[str] = (),
    numbers: Path = RESULTS / "doors.json",
) -> Page:
    """Write, import, describe and search a set of each kind.

    Args:
        source: Data root whose test queries with pictures, and texts of their positives, are taken.
        items: So many of them.
        kinds: Only these; none takes all that are not measured yet.
        numbers: JSON file of kind -> step -> seconds on the clock and of processors.
    """
    pool, texts = RootItems(source, "corpus"), dict[str, str]()
    files = DataRoot(source).query_files("test")
    for query in chain.from_iterable(open_queries(file.path) for file in files):
        target = pool.find(query.positives[0]) if query.positives else None
        if query.item.image and target is not None and target.text:
            texts.setdefault(query.item.image, target.text.replace('"', "'"))
    pairs = [(text, read_picture(source, name)) for name, text in islice(texts.items(), items)]
    kept = read_json(numbers) if numbers.is_file() else {"kinds": {}}
    for kind in kinds or [kind for kind in documented() if kind not in kept["kinds"]]:
        kept["kinds"][kind] = _measured(kind, pairs)
        write_json(numbers, kept)
    rows: list[Row] = [
        {"kind": kind, **{f"{name}, CPU s": step["cpu"] for name, step in own.items()},
         "minutes on the clock": sum(step["seconds"] for step in own.values()) / 60}
        for kind, own in kept["kinds"].items()
    ]  # fmt: skip
    about = (f"{len(pairs)} pictures with their texts as a set of each kind, its documented "
             "commands, each a program of its own, the packaged models.")  # fmt: skip
    return Page("From other people's files to enriched search", about, {"": rows})
