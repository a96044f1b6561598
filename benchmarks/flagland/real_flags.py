"""What a VLM says of real national flags, against what people wrote about them.

``python -m benchmarks.flagland.real_flags --root ../shared/data/mbeir_real --out FILE.md``. The human texts
name colours, shapes and divisions but not all of them, and mention history; so words are compared:
precision is the share of the VLM's colour, shape and division words that the person also uses,
recall the share of the person's words that the VLM uses.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from augment.data import DataRoot
from augment.data.pools import open_candidates, open_queries
from augment.engines import make_engine
from augment.prompts import load_prompt
from augment.records import Item, Sampling, one_picture

#: Kind of word -> word -> pattern of its wordings. Blue and light blue, red and maroon count as
#: one: people rarely tell them apart in these texts.
WORDS: dict[str, dict[str, str]] = {
    "colour": {
        "red": r"\b(red|maroon|crimson|scarlet)\b",
        "blue": r"\bblue\b",
        "yellow": r"\b(yellow|gold|golden)\b",
        "green": r"\bgreen\b",
        "white": r"\bwhite\b",
        "black": r"\bblack\b",
        "orange": r"\b(orange|saffron)\b",
        "purple": r"\b(purple|violet)\b",
    },
    "shape": {
        "star": r"\bstars?\b",
        "crescent": r"\bcrescents?\b",
        "disc": r"\b(discs?|disks?|circles?|rings?)\b",
        "sun": r"\bsuns?\b",
        "diamond": r"\b(diamonds?|lozenges?|rhombus)\b",
    },
    "division": {
        "horizontal": r"\bhorizontal\b",
        "vertical": r"\bvertical\b",
        "cross": r"\bcross\b",
        "saltire": r"\b(saltire|diagonal cross)\b",
        "triangle": r"\btriangle\b",
        "canton": r"\b(canton|upper hoist|hoist-side corner|upper-left)\b",
        "border": r"\b(border|edged)\b",
    },
}


def words(text: str, kind: str) -> set[str]:
    """The words of one kind that a text uses."""
    lowered = text.lower()
    return {word for word, pattern in WORDS[kind].items() if re.search(pattern, lowered)}


def pictures_and_texts(root: DataRoot) -> list[tuple[str, str, str]]:
    """Image path, image id and human description of every flag of task 0."""
    pool = open_candidates(root.pool_for("flags", 0, "test"))
    texts: dict[str, str] = {}
    for split in ("train", "test"):
        for file in root.query_files(split):
            if file.dataset == "flags":
                texts.update(
                    (did, query.item.text or "")
                    for query in open_queries(file.path)
                    if query.task == 0
                    for did in query.positives
                )
    return [
        (item.image or "", item.id, texts[item.id])
        for item in pool
        if item.id in texts and item.image
    ]


def main() -> None:
    """Describe, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/data/mbeir_real"))
    parser.add_argument("--model", default="flagland-vlm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.root.is_dir():
        raise SystemExit(f"{args.root}: no such folder")
    root = DataRoot(args.root)
    flags = pictures_and_texts(root)
    engine = make_engine(args.model, root=args.root, batch_size=64)
    prompt = load_prompt("rar/image_query")
    items = [Item(did, None, one_picture(image), "image") for image, did, _ in flags]
    replies = list(
        engine.generate([prompt.render(i) for i in items], Sampling(prompt.max_new_tokens))
    )
    lines = [
        f"{len(flags)} national flags, model {engine.model} {engine.revision[:12]}.",
        "",
        "| words | precision | recall | F1 | words people use |",
        "|---|--:|--:|--:|--:|",
    ]
    for kind in WORDS:
        counts: Counter[str] = Counter()
        for reply, (_, _, human) in zip(replies, flags, strict=True):
            said, true = words(reply.text, kind), words(human, kind)
            counts.update(hit=len(said & true), said=len(said), true=len(true))
        precision = counts["hit"] / max(1, counts["said"])
        recall = counts["hit"] / max(1, counts["true"])
        f1 = 2 * counts["hit"] / max(1, counts["said"] + counts["true"])
        lines.append(f"| {kind} | {precision:.3f} | {recall:.3f} | {f1:.3f} | {counts['true']} |")
    lines += ["", "| flag | the VLM | a person |", "|---|---|---|"]
    step = max(1, len(flags) // 12)
    for reply, (image, _, human) in list(zip(replies, flags, strict=True))[::step]:
        short = human if len(human) < 160 else human[:157] + "..."
        lines.append(f"| {Path(image).stem} | {reply.text} | {short.replace('|', '/')} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
