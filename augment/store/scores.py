"""``python -m augment scores``: every check's score of every text, as a table for pandas.

One row per item of a recipe: its id, why its text was refused, token counts, and one column per
check (see :mod:`augment.checks`). With ``--clip MODEL``, also how well each text fits its picture
(see :mod:`augment.checks.faithful`). Without ``--out`` the table goes to the folder ``scores`` of the
store, where ``python -m augment report`` finds it; texts and verdicts do not change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jsonargparse import ArgumentParser
from tqdm import tqdm

from augment.data import DataRoot, read_candidates, read_queries
from augment.data.images import open_image
from augment.enrichment import pipeline as cli
from augment.errors import DataError, ImageError
from augment.records import Enrichment, Item, Side
from augment.store import Store
from augment.store.reporting.faithful import place

if TYPE_CHECKING:
    import pandas as pd

    from augment.checks.faithful import Faithfulness

#: Pictures scored together; each is the contrast of the others.
BATCH = 64


def score_table(texts: Mapping[str, Enrichment]) -> pd.DataFrame:
    """Scores as columns, one row per item; a check that did not apply is missing (NaN)."""
    import pandas as pd

    rows = [
        {
            "item": item,
            "rejected": text.rejected,
            "finish": text.finish,
            "prompt": text.prompt,
            "prompt_tokens": text.prompt_tokens,
            "output_tokens": text.output_tokens,
            "cleaned": bool(text.raw),
            **text.checks,
        }
        for item, text in texts.items()
    ]
    table: pd.DataFrame = pd.DataFrame(rows).set_index("item") if rows else pd.DataFrame()
    return table


def faithfulness_table(
    items: Sequence[Item], texts: Mapping[str, Enrichment], root: Path, judged: Faithfulness
) -> pd.DataFrame:
    """``clip_`` columns of the items that have a picture and a text.

    Args:
        items: whose texts are scored; pictures that cannot be opened are left out.
        texts: item id -> text.
        root: folder that image paths are relative to.
        judged: the model that scores.
    """
    import pandas as pd

    from augment.checks.faithful import columns

    rows: dict[str, Mapping[str, float | str]] = {}
    pairs = ((item, texts[item.id].text) for item in items if item.id in texts and item.image)
    waiting = iter([(item, text) for item, text in pairs if text])
    with tqdm(total=len(items), desc="faithfulness", disable=None, leave=False) as bar:
        while batch := list(islice(waiting, BATCH)):
            opened = [
                (item.id, picture, text) for item, text in batch for picture in _open(root, item)
            ]
            if opened:
                ids, pictures, written = zip(*opened, strict=True)
                found = judged.score(pictures, written)
                rows.update((n, columns(f)) for n, f in zip(ids, found, strict=True))
            bar.update(len(batch))
    table: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index")
    return table


def _open(root: Path, item: Item) -> list[Any]:
    try:
        return [open_image(root, item.image or "")]
    except ImageError:
        return []


def _items(root: Path, side: Side) -> Iterator[Item]:
    data = DataRoot(root)
    if side == "corpus":
        for pool in data.pools():
            yield from read_candidates(pool.path)
        return
    for split in ("train", "val", "test"):
        for file in data.query_files(split):
            yield from (query.item for query in read_queries(file.path))


def command(arguments: Sequence[str] | None) -> int:
    """Parse, score, write; the exit code."""
    parser = ArgumentParser(
        prog="python -m augment scores", description="Scores of generated texts as a table."
    )
    for name, required, text in (
        ("store", True, "Generated texts."),
        ("out", False, "Table to write: .parquet or .csv; default: in the store, for the report."),
        ("root", False, "Folder in M-BEIR's layout; needed with --clip."),
        ("clip", False, "open_clip model (folder, hf-hub:NAME or name) that judges faithfulness."),
        ("pretrained", False, "Tag of the weights, where --clip is a name."),
        ("recipe", False, "Id of the recipe; default: the only one."),
    ):
        kind = str if required else str | None
        parser.add_argument(f"--{name}", type=kind, required=required, metavar="X", help=text)
    parser.add_argument("--side", choices=("corpus", "query"), default="corpus")
    given = parser.parse_args(arguments)
    side = cast("Side", given.side)
    texts = Store(Path(given.store)).texts(side, given.recipe)
    out = Path(given.out) if given.out else place(Path(given.store), side, texts.recipe.id)
    if out.suffix not in (".parquet", ".csv"):
        raise DataError("expected a name that ends in .parquet or .csv", str(out))
    table = score_table(texts)
    if given.clip:
        if not given.root:
            raise DataError("--clip looks at the pictures: name their folder with --root")
        from augment.checks.faithful import Faithfulness

        items = {item.id: item for item in _items(Path(given.root), side)}
        judged = Faithfulness(given.clip, given.pretrained)
        root = Path(given.root)
        table = table.join(faithfulness_table(list(items.values()), texts, root, judged))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        table.to_csv(out)
    else:
        _write(table, out, given.clip or "")
    sys.stdout.write(f"{len(table):,} texts, {len(table.columns)} columns: {out}\n")
    return 0


def _write(table: pd.DataFrame, out: Path, clip: str) -> None:
    """Write Parquet, whole or not at all, with the name of the model that judged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.Table.from_pandas(table)
    made = made.replace_schema_metadata({**(made.schema.metadata or {}), b"clip": clip.encode()})
    partial = out.with_name(f".{out.name}.partial")
    try:
        pq.write_table(made, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    cli.main(command)
