"""``python -m augment validate ROOT``: check a data root before hours are spent on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from augment.data.validation import Options, validate_root
from augment.data.validation.render import render_report
from augment.errors import DataError

_EPILOG = """\
exit status: 0 no errors (warnings may be), 1 errors found, 2 wrong usage or no data root
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        report = validate_root(
            options.root, Options(options.images, options.texts, options.context)
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render_report(report), end="")
    if options.json is not None:
        text = json.dumps(report.to_json(), indent=2, ensure_ascii=False)
        try:
            options.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            print(f"error: {options.json}: cannot be written: {error.strerror}", file=sys.stderr)
            return 2
    return 1 if report.total("error") else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m augment validate",
        description="Check a data root in M-BEIR's layout: counts per task and modality, "
        "duplicate ids, dangling positives, missing or broken pictures, text lengths.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    extents = ("sample", "all", "none")
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder with query/ and cand_pool/")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report as JSON")
    parser.add_argument(
        "--images",
        choices=extents,
        default="sample",
        help="sample: look every picture up and decode 500 of them (default); all: decode every "
        "one; none: touch no picture",
    )
    parser.add_argument(
        "--texts",
        choices=extents,
        default="sample",
        help="measure text lengths on at most 5,000 texts per file (sample, default), on all, or "
        "not at all; needs open_clip",
    )
    parser.add_argument(
        "--context",
        type=int,
        default=77,
        metavar="N",
        help="tokens the text encoder reads, start and end marks included (default: 77, CLIP)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
