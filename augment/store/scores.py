"""Every check's score of every text, as a table; and those of a CLIP model, for the report.

One row per item of a recipe: its id, why its text was refused, token counts, and one column per
check (see :mod:`augment.checks`). With a CLIP model, also how well each text fits its picture (see
:mod:`augment.checks.faithful`). Texts and verdicts do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, cast

from augment.data.images import open_image
from augment.data.items import RootItems
from augment.errors import DataError, ImageError, StoreError
from augment.files import replacing_path
from augment.records import Enrichment, Side, dataset_of
from augment.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: Where the scores of a recipe lie in its store.
PLACE = "scores/{side}-{recipe}.parquet"

#: Pictures scored together; each is the contrast of the others.
BATCH = 64

#: Texts that become rows at once.
CHUNK = 16_384

#: Column of a CLIP model's score -> what it is called, and how a low one is put.
SCORES: Mapping[str, tuple[str, str]] = {
    "clip_cosine": (
        "CLIP cosine of the worst sentence",
        "CLIP finds a sentence unlike the picture",
    ),
    "clip_rank": ("CLIP rank of the worst sentence", "CLIP finds it fits other pictures better"),
    "clip_word": ("CLIP probability of the worst word", "CLIP doubts a word"),
}

#: Texts with a score below are doubted. A word's is less than chance among 16 rivals: of 40 true
#: texts of flags that flagland-clip was shown, it doubts 2 so, of 40 with one wrong fact 27, and of
#: 40 that belong to another flag 33 (seed 90210). By rank: 0, 0, 12.
DOUBTFUL: Mapping[str, float] = {"clip_rank": 0.5, "clip_word": 0.05}


def scores(
    store: Path,
    side: Side = "corpus",
    recipe: str | None = None,
    out: Path | None = None,
    root: Path | None = None,
    clip: str | None = None,
    pretrained: str | None = None,
) -> Path:
    """Every check's score of every text, as a table; with a CLIP model, its doubts, too.

    Args:
        store: Generated texts.
        side: Whose texts.
        recipe: Id of the recipe; null: the one meant.
        out: Table to write, .parquet or .csv; null: in the store, for the report.
        root: Folder in M-BEIR's layout; needed with --clip.
        clip: open_clip model (folder, hf-hub:NAME or name) that judges faithfulness.
        pretrained: Tag of the weights, where --clip is a name.

    Returns:
        Where the table is.

    Raises:
        DataError: if the root cannot be read, or ``out`` has another ending.
        StoreError: if there is no such recipe.
        EngineError: if there is no such CLIP model.
    """
    texts = Store(store).texts(side, recipe)
    path = out or store / PLACE.format(side=side, recipe=texts.recipe.id)
    if path.suffix not in (".parquet", ".csv"):
        raise DataError("expected a name that ends in .parquet or .csv", str(path))
    facts, checks = text_tables(texts)
    table = facts.loc[:, "rejected":].join(checks)
    if clip:
        if root is None:
            raise DataError("--clip looks at the pictures: name their folder with --root")
        table = table.join(_faithfulness(root, side, texts, clip, pretrained))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path)
        return path
    table.attrs = {"clip": clip or ""}
    with replacing_path(path, DataError) as partial:
        table.to_parquet(partial, write_page_checksum=True)
    return path


def text_tables(texts: Mapping[str, Enrichment]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is known of every text, and its checks' scores; a row for each item, in their order.

    A score of a check that did not apply is missing (NaN). Keys and texts are hashes of eight
    bytes, which is what millions of them can be told apart by.
    """
    import pandas as pd

    rows, facts, checks = iter(texts.items()), [], []
    while chunk := list(islice(rows, CHUNK)):
        facts.append(pd.DataFrame([_facts(*one) for one in chunk]))
        checks.append(pd.DataFrame([text.checks for _, text in chunk]))
    if not facts:
        none = pd.DataFrame([_facts("", Enrichment("", "", "", "", "", ""))]).set_index("item")[:0]
        return none, none[[]]
    table = pd.concat(facts).set_index("item")
    return table, pd.concat(checks).set_index(table.index)


def _facts(item_id: str, text: Enrichment) -> dict[str, Any]:
    return {
        "item": item_id,
        "key": hash(text.key),
        "text": hash(text.text),
        "words": len(text.text.split()),
        "model": intern(f"{text.model} {text.revision[:12]}"),
        "dataset": intern(dataset_of(item_id)),
        "rejected": intern(text.rejected),
        "finish": text.finish,
        "prompt": intern(text.prompt),
        "prompt_tokens": text.prompt_tokens,
        "output_tokens": text.output_tokens,
        "cleaned": bool(text.raw),
    }


def _faithfulness(
    root: Path, side: Side, texts: Mapping[str, Enrichment], clip: str, pretrained: str | None
) -> pd.DataFrame:
    """``clip_`` columns of the items that have a text and a picture that can be opened."""
    import pandas as pd
    from tqdm import tqdm

    from augment.checks.faithful import Faithfulness, columns

    judge = Faithfulness(clip, pretrained)
    items = {item.id: item for item in RootItems(root, side)}.values()
    pairs = ((item, texts[item.id]) for item in items if item.id in texts and item.image)
    waiting = iter([(item, text) for item, text in pairs if text.text])
    rows: dict[str, Mapping[str, float | str]] = {}
    with tqdm(total=len(items), desc="faithfulness", disable=None, leave=False) as bar:
        while batch := list(islice(waiting, BATCH)):
            opened = []
            for item, text in batch:
                with suppress(ImageError):  # there is another now than the text was written about
                    picture = open_image(root, item.image or "", expected=text.picture)
                    opened.append((item.id, picture, text.text))
            if opened:
                ids, pictures, written = zip(*opened, strict=True)
                found = judge.score(pictures, written)
                rows.update((n, columns(f)) for n, f in zip(ids, found, strict=True))
            bar.update(len(batch))
    return cast("pd.DataFrame", pd.DataFrame.from_dict(rows, orient="index"))


def load_scores(store: Path, side: Side, recipe: str) -> tuple[str, pd.DataFrame] | None:
    """The CLIP model and its scores of a recipe, as :func:`scores` left them; None if it did not.

    Raises:
        StoreError: if the table cannot be read.
    """
    import pandas as pd

    path = store / PLACE.format(side=side, recipe=recipe)
    if not path.is_file():
        return None
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # Arrow's errors are these
        raise StoreError(f"{path}: cannot read the scores: {error}; delete the file") from error
    names = [name for name in SCORES if name in table]
    if not names:
        return None
    return table.attrs.get("clip", "unknown"), table.dropna(subset=names[:1])
