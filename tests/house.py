"""The counts that keep the house small: ``python -m tests.house`` (part of ``make check``).

Lines of product and of tests, children of a folder, depth of inheritance among our own classes,
classes of one name. Printed whether they hold or not; the exit status is 1 if one does not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HOME = Path(__file__).parents[1]
PRODUCT = ("augment", "retrievers", "benchmarks")

#: What may not be exceeded. Of lines this is where the house stands, so that it grows no more
#: unnoticed; where it is going is in AIMS. Raised for language models as encoders and rerankers,
#: tests of what had broken it, the union pool, the program for a GPU, and for TRACE, RGE, TTE-v2,
#: importers, exports, the first search, MMEB-V2, candidates that write, rehearsal, a judge of
#: chains: all four systems should fit into 36,000, and do not yet.
LIMITS = {
    "lines of product": 48_066,
    "lines of tests": 24_022,
    "children of a folder": 12,
    "depth of inheritance": 2,
    "classes of one name": 1,
}

AIMS = {"lines of product": 30_000, "lines of tests": 12_500}


def sources(top: str) -> list[Path]:
    """Python files below a folder that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", f"{top}/*.py"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
        cwd=HOME,
    )
    return [HOME / line for line in listed.stdout.splitlines() if (HOME / line).is_file()]


def count_lines(tops: tuple[str, ...]) -> int:
    """Lines of all Python files below some folders."""
    return sum(len(path.read_bytes().splitlines()) for top in tops for path in sources(top))


def children() -> dict[str, int]:
    """Folder of the product -> modules and packages in it, dunders left out."""
    seen: dict[str, set[str]] = defaultdict(set)
    for top in PRODUCT:
        for path in sources(top):
            inner = path.relative_to(HOME)
            for parent in inner.parents[:-1]:
                child = inner.relative_to(parent).parts[0]
                if not child.startswith("__"):
                    seen[str(parent)].add(child)
    return {folder: len(names) for folder, names in seen.items()}


def classes() -> Iterator[tuple[str, str, list[str]]]:
    """Every class of the product at module level: its file, name and the names of its bases."""
    for top in PRODUCT:
        for path in sources(top):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    bases = [base.value if isinstance(base, ast.Subscript) else base
                             for base in node.bases]  # fmt: skip
                    names = [base.attr if isinstance(base, ast.Attribute) else
                             getattr(base, "id", "") for base in bases]  # fmt: skip
                    yield str(path.relative_to(HOME)), node.name, names


def depth(name: str, bases: dict[str, list[str]]) -> int:
    """How many of our own classes stand above a class, itself included."""
    return 1 + max((depth(base, bases) for base in bases[name] if base in bases), default=0)


def raised(name: str, bases: dict[str, list[str]]) -> bool:
    """Whether a class is an exception."""
    return any(base == "Exception" or raised(base, bases) for base in bases.get(name, ()))


def measure() -> tuple[dict[str, int], list[str]]:
    """Name of a count -> its worst value, and what stands behind those that are too high."""
    counts = {"lines of product": count_lines(PRODUCT), "lines of tests": count_lines(("tests",))}
    remarks: list[str] = []
    folders = children()
    counts["children of a folder"] = max(folders.values())
    remarks += [f"{folder}: {count} children" for folder, count in folders.items()
                if count > LIMITS["children of a folder"]]  # fmt: skip
    files: dict[str, list[str]] = defaultdict(list)
    bases: dict[str, list[str]] = {}
    for file, name, names in classes():
        if not name.startswith("_"):
            files[name].append(file)
        bases[name] = [base for base in names if base != name]
    counts["classes of one name"] = max(len(where) for where in files.values())
    remarks += [f"class {name}: {', '.join(where)}" for name, where in files.items()
                if len(where) > LIMITS["classes of one name"]]  # fmt: skip
    # A tree of errors is there to be caught at any of its branches; it may be higher.
    depths = {name: depth(name, bases) for name in bases if not raised(name, bases)}
    counts["depth of inheritance"] = max(depths.values())
    remarks += [f"class {name}: {levels} storeys" for name, levels in depths.items()
                if levels > LIMITS["depth of inheritance"]]  # fmt: skip
    return counts, remarks


def main() -> int:
    """Print the counts and what breaks them; the exit status."""
    counts, remarks = measure()
    for name, count in counts.items():
        held = f"   (aim: {AIMS[name]:,})" if name in AIMS else ""
        held += "" if count <= LIMITS[name] else "   TOO MANY"
        sys.stdout.write(f"{name:22}{count:>8,} of {LIMITS[name]:>7,}{held}\n")
    sys.stdout.write("".join(f"  {remark}\n" for remark in remarks))
    return int(any(count > LIMITS[name] for name, count in counts.items()))


if __name__ == "__main__":
    raise SystemExit(main())
