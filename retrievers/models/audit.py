"""What the context of a text encoder cuts off: items and tokens, per side and modality.

Counted with the retriever's own tokenizer on the text as it is shown, instructions included. In
training that is the text of the first epoch, with every query's first instruction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import pandas as pd

from augment.files import aligned, say, write_text
from augment.records import Modality, Side
from retrievers.data.datasets import PairDataset, target_modality
from retrievers.data.examples import Collator
from retrievers.data.module import MBeirData
from retrievers.data.plan import Plan, plan_pools
from retrievers.data.texts import TextRecipe
from retrievers.models.base import Encoder
from retrievers.models.long_text import Windows, context_of, count_tokens

#: Texts of one side that are looked at before every fit and test, evenly spread.
SAMPLED = 5_000

_NOUNS: dict[Side, str] = {"query": "queries", "corpus": "candidates"}


@final
@dataclass(frozen=True)
class Audit:
    """What is cut off.

    Attributes:
        context: tokens that the encoder reads at a time, marks included.
        windows: most windows in which a text is read.
        items: items of each side, of which a sample may have been looked at.
        looked: items looked at.
        texts: side, modality (of the item as published), tokens and lost (never read) of every text
            that was looked at; start and end marks are not counted.
    """

    context: int
    windows: int
    items: dict[Side, int]
    looked: dict[Side, int]
    texts: pd.DataFrame

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Per side and modality: texts, cut ones, tokens, lost ones, tokens of the longest text."""
        rows: Any = self.texts.assign(cut=self.texts.lost > 0).groupby(
            ["side", "modality"], sort=False, as_index=False
        )
        counted = rows.agg(
            texts=("tokens", "size"), cut=("cut", "sum"), tokens=("tokens", "sum"),
            lost=("lost", "sum"), longest=("tokens", "max"),
        )  # fmt: skip
        return cast("list[dict[str, Any]]", counted.to_dict("records"))

    @property
    def cut(self) -> int:
        """Items of which a part is never read."""
        return int((self.texts.lost > 0).sum())

    def line(self) -> str:
        """One line for the log."""
        windows = f" in {self.windows} windows" if self.windows > 1 else ""
        having = {row["side"] for row in self.rows}
        told = "; ".join(self._told(side) for side in self.items if side in having)
        told = told or "there is no text"
        return f"text beyond {self.context} tokens{windows}: {told}"

    def _told(self, side: Side) -> str:
        rows = [row for row in self.rows if row["side"] == side]
        texts, cut, tokens, lost = (
            sum(row[name] for row in rows) for name in ("texts", "cut", "tokens", "lost")
        )
        seen, items = self.looked[side], self.items[side]
        sample = f" (a sample of {items:,})" if seen < items else ""
        if not cut:
            return f"none of {texts:,} {_NOUNS[side]} is cut{sample}"
        parts = ", ".join(f"{row['modality']} {row['cut']:,} of {row['texts']:,}" for row in rows)
        return (
            f"{cut:,} of {texts:,} {_NOUNS[side]} are cut{sample}: {parts}; "
            f"{100 * lost / tokens:.1f} % of their tokens are lost"
        )

    def table(self) -> str:
        """A plain table."""
        head = ["side", "modality", "texts", "cut", "%", "tokens", "lost", "%", "mean", "longest"]
        lines = [
            [
                row["side"], row["modality"], f"{row['texts']:,}", f"{row['cut']:,}",
                f"{100 * row['cut'] / row['texts']:.1f}", f"{row['tokens']:,}",
                f"{row['lost']:,}", f"{100 * row['lost'] / max(row['tokens'], 1):.1f}",
                f"{row['tokens'] / row['texts']:.1f}", str(row["longest"]),
            ]
            for row in self.rows
        ]  # fmt: skip
        return aligned([head, *lines], 2)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single texts, JSON-serialisable."""
        told = {name: value for name, value in vars(self).items() if name != "texts"}
        line = self.line() if self.cut else ""
        return {**told, "rows": self.rows, "line": line}


def audit(
    model: Encoder | str,
    data: MBeirData,
    out: Path = Path("runs/retriever"),
    texts: int | None = None,
) -> None:
    """Count what the context of the text encoder cuts off, in training and in test.

    Writes ``audit.json``, with ``fit`` and ``test`` as far as the root has such queries, else
    ``pools``; null for a tokenizer whose tokens cannot be counted. No text is encoded.

    Args:
        model: whose tokenizer counts: a checkpoint, an exported folder, a name that ``search``
            takes, or an encoder.
        data: the root and what is shown of it.
        out: folder of ``audit.json``.
        texts: look at so many of each side, evenly spread; null for all.

    Raises:
        DataError: if the root has neither queries nor pools.
    """
    from retrievers.models.load import loaded

    collator, found = loaded(model).collator(), dict[str, Audit | None]()
    if data.root.query_files("train"):
        pairs, _ = data.training(collator)
        found["fit"] = audit_training(pairs, data.recipe, collator, texts)
    if data.root.query_files(data.test.split):
        found["test"] = audit_plan(data.test_plan(), data.recipe, collator, texts)
    if not found:
        found["pools"] = audit_plan(plan_pools(data.root), data.recipe, collator, texts)
    told = {stage: audit and audit.to_json() for stage, audit in found.items()}
    write_text(out / "audit.json", json.dumps(told, indent=1) + "\n")
    shown = (
        f"{name}, {audit.context} tokens at a time\n{audit.table()}\n{audit.line()}"
        if audit
        else f"{name}: the tokens of this retriever's tokenizer cannot be counted"
        for name, audit in found.items()
    )
    say("\n\n".join(shown) + f"\n{out}/audit.json")


#: Row number -> modality and text of an item.
_Shown = Callable[[int], tuple[Modality, str | None]]


def audit_plan(
    plan: Plan, recipe: TextRecipe, collator: Collator, most: int | None = SAMPLED
) -> Audit | None:
    """What a test or validation cuts off.

    Returns:
        None for a tokenizer whose tokens cannot be counted.
    """

    def candidate(row: int) -> tuple[Modality, str | None]:
        item = plan.item(row)
        return item.modality, recipe.candidate(item)

    def query(row: int) -> tuple[Modality, str | None]:
        found, target = plan.queries[row]
        return found.item.modality, recipe.query(found, target)

    return _audit(
        {"corpus": (len(plan), candidate), "query": (len(plan.queries), query)}, collator, most, 1
    )


def audit_training(
    pairs: PairDataset, recipe: TextRecipe, collator: Collator, most: int | None = SAMPLED
) -> Audit | None:
    """What training cuts off: every query, and one positive of each.

    Returns:
        None for a tokenizer whose tokens cannot be counted.
    """
    draw = pairs.draw_of(0)

    def candidate(row: int) -> tuple[Modality, str | None]:
        item = next(filter(None, map(pairs.find, pairs.queries[row].positives)), None)
        return (item.modality, recipe.candidate(item, draw)) if item else ("text", None)

    def query(row: int) -> tuple[Modality, str | None]:
        found = pairs.queries[row]
        target = target_modality(found, pairs.find)
        return found.item.modality, recipe.query(found, target, None, draw)

    sides: dict[Side, tuple[int, _Shown]] = {
        "corpus": (len(pairs), candidate),
        "query": (len(pairs), query),
    }
    return _audit(sides, collator, most, None)


def _audit(
    sides: dict[Side, tuple[int, _Shown]],
    collator: Collator,
    most: int | None,
    windows: int | None,
) -> Audit | None:
    tokenize = getattr(collator, "tokenize", None)
    context = context_of(tokenize)
    marks = count_tokens(tokenize, [""])
    if context is None or marks is None:
        return None
    split = getattr(collator, "windows", None) if windows is not None else None
    split = split if isinstance(split, Windows) else None
    looked = {side: _spread(size, most) for side, (size, _) in sides.items()}
    texts = [
        (side, modality, *_lost(text, tokenize, split, context, marks[0]))
        for side, (_, shown) in sides.items()
        for modality, text in map(shown, looked[side])
        if text is not None
    ]
    return Audit(
        context,
        split.most if split else 1,
        {side: size for side, (size, _) in sides.items()},
        {side: len(rows) for side, rows in looked.items()},
        pd.DataFrame(texts, columns=["side", "modality", "tokens", "lost"]),
    )


def _lost(
    text: str, tokenize: Any, split: Windows | None, context: int, marks: int
) -> tuple[int, int]:
    """Tokens of a text and those of them that are never read, without marks."""

    def count(texts: Sequence[str]) -> list[int]:
        return [n - marks for n in count_tokens(tokenize, texts) or []]

    (tokens,) = count([text])
    if tokens <= context - marks or split is None:
        return tokens, max(0, tokens - (context - marks))
    lengths = count(split.all(text))
    over = sum(max(0, length - (context - marks)) for length in lengths[: split.most])
    return tokens, over + sum(lengths[split.most :])


def _spread(size: int, most: int | None) -> list[int]:
    """At most so many numbers below ``size``, evenly spaced."""
    if most is None or size <= most:
        return list(range(size))
    return [place * size // most for place in range(most)]
