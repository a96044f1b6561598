"""Training pairs with their hard negatives as records that other trainers read, as JSON lines.

ms-swift (its documentation of embedding, ``Best practices``): a conversation each for the query,
its positives and its negatives, a place for every picture. Tevatron (``retriever/dataset.py`` at
0a9626f): ids of a corpus beside the queries, or passages of text alone in the query's own line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from augment.data.images import read_picture, resolve, tar_part
from augment.errors import DataError
from augment.files import digest, new_folder, say
from augment.records import Item
from retrievers.data.datasets import open_negatives, target_modality
from retrievers.data.module import MBeirData

Form = Literal["ms_swift", "tevatron", "tevatron_passages"]


class _Shown(NamedTuple):
    id: str
    text: str
    pictures: list[str]


class _Pair(NamedTuple):
    query: _Shown
    positives: list[_Shown]
    negatives: list[_Shown]


def pairs(data: MBeirData, out: Path, to: Form = "ms_swift", most: int = 8) -> None:
    """Write training pairs, and hard negatives of ``data.negatives``, for other trainers.

    Texts are those of the data's views, behind their first instruction; pictures are named by path.

    Args:
        data: the root, what is shown of it, and where hard negatives come from.
        out: new folder of ``train.jsonl``, and of Tevatron's ``corpus.jsonl``.
        to: whose records; tevatron_passages are of texts alone.
        most: negatives of a query, in the table's order.

    Raises:
        DataError: if there is something under the name, or passages are asked for of an item with
            a picture.
    """
    number, corpus = 0, dict[str, _Shown]()
    with new_folder(out) as partial, (partial / "train.jsonl").open("w", encoding="utf-8") as file:
        for number, pair in enumerate(_pairs(data, most, partial, out), start=1):  # noqa: B007 - told
            file.write(_line(_FORMS[to](pair)))
            if to == "tevatron":
                corpus.update((one.id, one) for one in (*pair.positives, *pair.negatives))
        if corpus:
            with (partial / "corpus.jsonl").open("w", encoding="utf-8") as stream:
                for did, one in corpus.items():
                    stream.write(_line({"docid": did, "text": one.text, "image": _one(one)}))
    say(f"{number} queries\n{out}/train.jsonl")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _pairs(data: MBeirData, most: int, partial: Path, out: Path) -> Iterator[_Pair]:
    book, queries = data.training_queries(None)
    hard, recipe, root = open_negatives(data.negatives, queries), data.recipe, data.root.path

    def file(path: str) -> str:  # other trainers read no tars
        if not tar_part(path):
            return str(resolve(root, path))
        name = f"{digest(path)[:24]}{Path(path).suffix}"
        (partial / "pictures").mkdir(exist_ok=True)
        (partial / "pictures" / name).write_bytes(read_picture(root, path))
        return str(out.resolve() / "pictures" / name)

    def shown(item: Item, text: str | None) -> _Shown:
        return _Shown(item.id, text or "", [file(path) for path in item.images])

    def found(dids: Iterable[str]) -> list[_Shown]:
        items = (item for item in map(book.find, dids) if item is not None)
        return [shown(item, recipe.candidate(item)) for item in items]

    for query in queries:
        negatives = list(hard.of(query).negatives)[:most] if hard else []
        text = recipe.query(query, target_modality(query, book.find))
        yield _Pair(shown(query.item, text), found(query.positives), found(negatives))


def _ms_swift(pair: _Pair) -> dict[str, Any]:
    record: dict[str, Any] = {"messages": _said(pair.query)}
    if pair.query.pictures:
        record["images"] = pair.query.pictures
    for name, others in (("positive", pair.positives), ("negative", pair.negatives)):
        if others:
            record[f"{name}_messages"] = [_said(one) for one in others]
        if any(one.pictures for one in others):
            record[f"{name}_images"] = [one.pictures for one in others]
    return record


def _said(one: _Shown) -> list[dict[str, str]]:
    text = one.text.replace("<image>", "< image>")  # only the record may speak of a place
    return [{"role": "user", "content": "<image>" * len(one.pictures) + text}]


def _tevatron(pair: _Pair) -> dict[str, Any]:
    return {
        "query_id": pair.query.id,
        "query_text": pair.query.text,
        "query_image": _one(pair.query),
        "positive_document_ids": [one.id for one in pair.positives],
        "negative_document_ids": [one.id for one in pair.negatives],
    }


def _one(shown: _Shown) -> str | None:
    if len(shown.pictures) > 1:
        raise DataError("has several pictures, and Tevatron's records hold one", shown.id)
    return shown.pictures[0] if shown.pictures else None


def _passages(pair: _Pair) -> dict[str, Any]:
    record: dict[str, Any] = {"query_id": pair.query.id, "query": pair.query.text}
    for name, others in (("positive", pair.positives), ("negative", pair.negatives)):
        record[f"{name}_passages"] = [{"docid": one.id, "text": one.text} for one in others]
    for one in (pair.query, *pair.positives, *pair.negatives):
        if one.pictures:
            raise DataError("has a picture, and passages are text; take --to=tevatron", one.id)
    return record


_FORMS = {"ms_swift": _ms_swift, "tevatron": _tevatron, "tevatron_passages": _passages}
