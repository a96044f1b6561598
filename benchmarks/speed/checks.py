"""Recall and precision of the checks on texts written by hand; on a CPU."""

from __future__ import annotations

import random
import re
from pathlib import Path

import yaml

from augment.checks import check
from augment.checks.judge import RULES
from augment.files import read_json, write_json
from benchmarks.speed.harness import RESULTS, Page, Row

#: Texts written by hand: part -> check -> bad and good ones.
TEXTS = Path(__file__).with_name("texts.yaml")
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


def spelled(line: str) -> list[str]:
    """Five draws of a line with ``{a|b}`` in it, each once; of any other the line alone."""
    rng = random.Random(line)
    drawn = (_CHOICE.sub(lambda some: rng.choice(some[1].split("|")), line) for _ in range(5))
    return list(dict.fromkeys(drawn))


def count_texts() -> dict[str, dict[str, dict[str, int]]]:
    """Part of :data:`TEXTS` -> check -> texts it should and should not refuse, and refuses."""
    counted: dict[str, dict[str, dict[str, int]]] = {}
    for part, checks in yaml.safe_load(TEXTS.read_text(encoding="utf-8")).items():
        for name, texts in checks.items():
            every = {kind: [one for line in texts[kind] for one in spelled(line)] for kind in texts}
            refused = {kind: sum(bool(check(one)) for one in every[kind]) for kind in every}
            row = {"bad": len(every["bad"]), "found": refused["bad"],
                   "good": len(every["good"]), "wrong": refused["good"]}  # fmt: skip
            counted.setdefault(part, {})[name] = row
    return counted


def measure_texts() -> Page:
    """Judge the texts written by hand; counts of earlier rules stay beside those of these."""
    path = RESULTS / "check_texts.json"
    kept = {**(read_json(path) if path.is_file() else {}), f"rules {RULES}": count_texts()}
    write_json(path, kept)
    rows: list[Row] = []
    for part, checks in count_texts().items():
        for name, own in checks.items():
            row: dict[str, object] = {
                "texts": part,
                "check": name,
                "bad": own["bad"],
                "good": own["good"],
            }
            for rules, counted in kept.items():
                if part not in counted:  # these texts came after those rules
                    row[f"recall, {rules}"] = row[f"precision, {rules}"] = "-"
                    continue
                found, wrong = (counted[part][name][key] for key in ("found", "wrong"))
                row[f"recall, {rules}"] = f"{found / own['bad']:.1%}"
                row[f"precision, {rules}"] = f"{found / max(found + wrong, 1):.1%}"
            rows.append(row)
    return Page(
        "Texts written by hand",
        "Texts as models write them in several styles, and texts that look alike and are fine "
        "(`benchmarks/speed/texts.yaml`). *Recall*: bad texts that are refused, by any check. "
        "*Precision*: share of bad ones among those it refuses. The rules were written in sight of "
        "the texts called seen; those called unseen came after them and changed nothing. Those "
        "called later came after rules 4 and before rules 5; the same hand wrote both, and had "
        "printed them to count rules 4, so that they are half seen; those called last came when "
        "rules 5 were done, in search of words that they do not know.",
        {"": rows},
    )
