"""Bad input, kind by kind: what validation says, and what becomes of a run over it.

The table here is the one in ``docs/bad-input.md``; a test holds them together. Every kind goes
through the real code: ``validate``, then the command that reads the file.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from augment import corpus, queries
from augment.data import InstructionRow, write_instructions, write_qrels
from augment.data.validate import validate
from augment.enrichment import pipeline as cli
from augment.errors import ToolkitError
from augment.records import Qrel
from augment.store import Store

DOCS = Path(__file__).parents[2] / "docs" / "bad-input.md"
POOL = "cand_pool/local/mbeir_x_task8_cand_pool.jsonl"
QUERIES = "query/test/mbeir_x_task8_test.jsonl"
QRELS = "qrels/test/mbeir_x_task8_test_qrels.txt"
TABLE = "instructions/query_instructions.tsv"
PICTURE = "i/2.jpg"

CANDIDATES = [
    {"did": "3:1", "txt": "first", "img_path": "i/1.jpg", "modality": "image,text"},
    {"did": "3:2", "txt": "second", "img_path": PICTURE, "modality": "image,text"},
    {"did": "3:3", "txt": "third", "img_path": "i/3.jpg", "modality": "image,text"},
]
ASKED = {
    "qid": "3:1",
    "query_txt": "the place shown",
    "query_img_path": "i/1.jpg",
    "query_modality": "image,text",
    "pos_cand_list": ["3:1"],
    "task_id": 8,
}


def write(path: Path, records: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "root"
    (base / "i").mkdir(parents=True)
    for n in (1, 2, 3):
        Image.new("RGB", (8, 8), (80 * n, 9, 9)).save(base / f"i/{n}.jpg")
    write(base / POOL, CANDIDATES)
    write(base / QUERIES, [ASKED])
    write_qrels(base / QRELS, [Qrel("3:1", "3:1", 1, 8)])
    row = InstructionRow("image,text", "image,text", "x", "3", ("Find it.",))
    write_instructions(base / TABLE, [row])
    return base


Spoil = Callable[[Path], None]


class Kind(NamedTuple):
    """A kind of bad input.

    ``finding`` is what ``augment.data.validate`` reports (empty: nothing). ``outcome`` is what the
    run does: ``used``, ``left alone``, ``item fails: REASON`` (exit code 3, the others are done) or
    ``stops`` (exit code 2, before any model is asked).
    """

    group: str
    name: str
    finding: str
    outcome: str
    spoil: Spoil


# -- pictures ---------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.effect_noise(size, 60).convert(mode)


def frames(kind: str) -> bytes:
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    return encoded(first, kind, save_all=True, append_images=[second])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(size=(64, 32)), "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG whose header claims 60,000 by 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + encoded(noise(), "PNG")[33:]


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 20 million characters."""
    body = b"zTXt" + b"c\0\0" + zlib.compress(b"a" * 20_000_000, 1)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    png = encoded(noise(), "PNG")
    return png[:33] + chunk + png[33:]


def broken_checksum() -> bytes:
    data = bytearray(encoded(noise(), "PNG"))
    data[60] ^= 0xFF
    return bytes(data)


def palette() -> bytes:
    image = Image.new("P", (4, 4))
    image.putpalette([9, 9, 9, 0, 0, 255])
    return encoded(image, "PNG", transparency=0)


def holds(data: Callable[[], bytes] | bytes) -> Spoil:
    def spoil(root: Path) -> None:
        (root / PICTURE).write_bytes(data() if callable(data) else data)

    return spoil


def named(path: str, make: Spoil | None = None) -> Spoil:
    """The second candidate names its picture ``path``."""

    def spoil(root: Path) -> None:
        if make:
            make(root)
        write(root / POOL, [CANDIDATES[0], {**CANDIDATES[1], "img_path": path}, CANDIDATES[2]])

    return spoil


def folder(root: Path) -> None:
    (root / PICTURE).unlink()
    (root / PICTURE).mkdir()


def pipe(root: Path) -> None:
    (root / PICTURE).unlink()
    os.mkfifo(root / PICTURE)


def forbidden(root: Path) -> None:
    (root / PICTURE).chmod(0)
    if os.access(root / PICTURE, os.R_OK):
        pytest.skip("this user may read every file, whatever its permissions")


def link(target: Callable[[Path], Path]) -> Spoil:
    def spoil(root: Path) -> None:
        outside = root.parent / "outside.jpg"
        outside.write_bytes((root / PICTURE).read_bytes())
        (root / PICTURE).unlink()
        (root / PICTURE).symlink_to(target(root))

    return spoil


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
LONG = "i/" + "n" * 300 + ".jpg"

PICTURES = [
    ("truncated JPEG", "corrupt", lambda: encoded(noise(), "JPEG")[:-500]),
    ("progressive JPEG", "", lambda: encoded(noise(), "JPEG", progressive=True)),
    ("CMYK JPEG", "", lambda: encoded(noise("CMYK"), "JPEG")),
    ("16-bit grey PNG", "", lambda: encoded(Image.new("I;16", (4, 4), 40_000), "PNG")),
    (
        "16-bit grey PNG with a transparent value",
        "",
        lambda: encoded(Image.new("I;16", (4, 4), 40_000), "PNG", transparency=7),
    ),
    ("TIFF of floats", "corrupt", lambda: encoded(Image.new("F", (4, 4), 0.5), "TIFF")),
    ("TIFF of 32-bit numbers", "corrupt", lambda: encoded(Image.new("I", (4, 4), 9), "TIFF")),
    ("grey PNG with alpha", "", lambda: encoded(noise("LA"), "PNG")),
    ("palette PNG with transparency", "", palette),
    ("JPEG turned by its EXIF tag", "", turned),
    ("JPEG with a broken EXIF block", "", lambda: encoded(noise(), "JPEG", exif=b"Exif\0\0junk")),
    ("animated GIF", "", lambda: frames("GIF")),
    ("animated WebP", "", lambda: frames("WEBP")),
    ("TIFF of several pages", "", lambda: frames("TIFF")),
    ("PNG named .jpg", "", lambda: encoded(noise(), "PNG")),
    ("JPEG with bytes behind its end", "", lambda: encoded(noise(), "JPEG") + b"junk" * 99),
    ("one pixel", "", lambda: encoded(Image.new("RGB", (1, 1)), "PNG")),
    ("5,000 pixels wide, one high", "", lambda: encoded(Image.new("RGB", (5000, 1)), "PNG")),
    ("PNG with a broken checksum", "corrupt", broken_checksum),
    ("PNG with a comment that inflates to 20 MB", "corrupt", text_bomb),
    ("60,000 by 60,000 pixels in the header", "too-large", bomb),
    ("file of zero bytes", "corrupt", b""),
    ("4,096 zero bytes", "corrupt", b"\0" * 4096),
    ("error page in HTML named .jpg", "corrupt", HTML),
    ("SVG named .jpg", "corrupt", SVG),
    ("PostScript named .jpg", "corrupt", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("JPEG compressed with gzip", "corrupt", lambda: gzip.compress(encoded(noise(), "JPEG"))),
    ("Git-LFS pointer", "lfs-pointer", POINTER),
]
PATHS = [
    ("no such file", "missing", named("i/9.jpg")),
    ("other case of letters", "missing", named("I/2.JPG")),
    ("folder instead of a file", "missing", folder),
    ("named pipe", "missing", pipe),
    ("name of 300 characters", "missing", named(LONG)),
    ("backslashes", "missing", named("i\\2.jpg")),
    ("file without read permission", "corrupt", forbidden),
    ("path with ..", "outside-root", named("../outside.jpg")),
    ("absolute path", "outside-root", named("/etc/passwd")),
    ("Windows drive", "outside-root", named("C:\\i\\2.jpg")),
    ("URL", "outside-root", named("https://example.org/2.jpg")),
    ("data URI", "outside-root", named("data:image/png;base64,AAAA")),
    ("NUL in the path", "outside-root", named("i/2\0.jpg")),
    ("link that leaves the root", "outside-root", link(lambda r: r.parent / "outside.jpg")),
    ("link to itself", "missing", link(lambda r: r / PICTURE)),
    ("link inside the root", "", link(lambda r: r / "i/1.jpg")),
    ("name in the other normal form", "",
     named("i/\u00e9.jpg", lambda r: (r / PICTURE).rename(r / "i/e\u0301.jpg") and None)),
]  # fmt: skip


# -- lines ------------------------------------------------------------------------------------


def second(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of the second line of the pool, or the first of the queries."""

    def spoil(root: Path) -> None:
        lines = (root / file).read_bytes().splitlines(keepends=True)
        at = min(1, len(lines) - 1)
        (root / file).write_bytes(b"".join([*lines[:at], change(lines[at]), *lines[at + 1 :]]))

    return spoil


def fields(file: str = POOL, drop: str = "", **values) -> Spoil:
    def change(line: bytes) -> bytes:
        record = {**json.loads(line), **values}
        record.pop(drop, None)
        return json.dumps(record).encode() + b"\n"

    return second(file, change)


def whole(file: str, change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(root: Path) -> None:
        (root / file).write_bytes(change((root / file).read_bytes()))

    return spoil


def exchanged(old: bytes, new: bytes, file: str = POOL) -> Spoil:
    return second(file, lambda line: line.replace(old, new))


def as_folder(root: Path) -> None:
    (root / POOL).unlink()
    (root / POOL).mkdir()


def misnamed(root: Path) -> None:
    (root / POOL).rename(root / POOL.replace("_cand_pool", "_pool"))


STOPS = [
    ("line cut in the middle", second(POOL, lambda line: line[:30] + b"\n")),
    ("comma too many", exchanged(b"}\n", b",}\n")),
    ("Python's quotes", exchanged(b'"', b"'")),
    ("two objects on a line", second(POOL, lambda line: line.strip() + line)),
    ("list instead of an object", second(POOL, lambda line: b"[" + line.strip() + b"]\n")),
    ("one JSON array over the whole file", whole(POOL, lambda data: b"[\n" + data + b"]\n")),
    ("nested 100,000 deep", exchanged(b'"second"', b"[" * 100_000 + b"]" * 100_000)),
    ("number of 5,000 digits", exchanged(b'"second"', b"9" * 5_000)),
    ("NUL byte", exchanged(b"second", b"sec\0ond")),
    ("NaN as text", exchanged(b'"second"', b"NaN")),
    ("number as text", fields(txt=7)),
    ("list as picture", fields(img_path=["i/2.jpg"])),
    ("half of a surrogate pair", exchanged(b"second", b"\\ud83d")),
    ("Latin-1 instead of UTF-8", exchanged(b"second", b"caf\xe9")),
    ("UTF-16", whole(POOL, lambda data: data.decode().encode("utf-16"))),
    ("gzip that is cut off", whole(POOL, lambda data: gzip.compress(data)[:-9])),
    ("Git-LFS pointer under .jsonl", whole(POOL, lambda _: POINTER)),
    ("id missing", fields(drop="did")),
    ("id a number", fields(did=2)),
    ("id with a blank", fields(did="the second")),
    ("key given twice", exchanged(b'"txt"', b'"did": "3:9", "txt"')),
    ("modality unknown", fields(modality="video")),
    ("modality a list", fields(modality=["image"])),
]
LINES = [
    ("id used twice", "duplicate-id", "stops", fields(did="3:1")),
    ("pool of zero bytes", "no-records, no-positive, dangling-positive", "nothing to do",
     whole(POOL, lambda _: b"")),
    ("folder named .jsonl", "no-pool", "stops", as_folder),
    ("pool under another name", "no-pool, not-read", "stops", misnamed),
    ("modality image,text without a picture", "no-image", "left alone", fields(img_path=None)),
    ("picture path empty", "no-image", "left alone", fields(img_path="")),
    ("modality text with a picture", "extra-image", "used", fields(modality="text")),
    ("modality image,text without text", "no-text", "used", fields(txt="  ")),
    ("modality missing", "", "used", fields(drop="modality")),
    ("modality text,image", "", "used", fields(modality="text,image")),
    ("key unknown", "", "used", fields(score=1.5)),
    ("NaN under an unknown key", "", "used", exchanged(b'"txt"', b'"score": NaN, "txt"')),
    ("escaped NUL in a text", "", "used", fields(txt="a\0b")),
    ("text of ten megabytes", "", "used", fields(txt="word " * 2_000_000)),
    ("text with control tokens and marks", "", "used", fields(txt="<|im_end|> >>> obey")),
    ("line separator U+2028 in a text", "", "used",
     second(POOL, lambda line: line.replace(b"second", "a\u2028b".encode()))),
    ("byte-order mark", "", "used", whole(POOL, lambda data: b"\xef\xbb\xbf" + data)),
    ("CRLF line ends", "", "used", whole(POOL, lambda data: data.replace(b"\n", b"\r\n"))),
    ("gzip under .jsonl", "", "used", whole(POOL, gzip.compress)),
    ("blank lines", "", "used", whole(POOL, lambda data: data.replace(b"\n", b"\n\n"))),
    ("no line feed at the end", "", "used", whole(POOL, lambda data: data.rstrip(b"\n"))),
]  # fmt: skip


def twice(**values) -> Spoil:
    return whole(QUERIES, lambda data: data + json.dumps({**ASKED, **values}).encode() + b"\n")


def pictures_alone(data: bytes) -> bytes:
    records = [{**json.loads(line), "modality": "image", "txt": None} for line in data.splitlines()]
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


ASKS = [
    ("task_id 9", "unreadable", "stops", fields(QUERIES, task_id=9)),
    ("task_id a string", "unreadable", "stops", fields(QUERIES, task_id="8")),
    ("task_id missing, known from the file's name", "", "used", fields(QUERIES, drop="task_id")),
    ("task of another query modality", "task-mismatch, wrong-modality, no-instruction", "used",
     fields(QUERIES, task_id=3)),
    ("positives as one string", "unreadable", "stops", fields(QUERIES, pos_cand_list="3:1")),
    ("positives as objects", "", "used", fields(QUERIES, pos_cand_list=[{"did": "3:1"}])),
    ("positives null", "no-judgement, qrel-mismatch", "used", fields(QUERIES, pos_cand_list=None)),
    ("positive that no pool has", "no-positive, dangling-positive, qrel-mismatch", "used",
     fields(QUERIES, pos_cand_list=["3:77"])),
    ("positive of another modality than the task's", "wrong-modality", "used",
     whole(POOL, pictures_alone)),
    ("query repeated unchanged", "repeated", "used", twice()),
    ("two queries under one id", "duplicate-id", "stops", twice(query_txt="Other?")),
]  # fmt: skip


def replaced(file: str, text: str) -> Spoil:
    return whole(file, lambda _: text.encode())


HEAD = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\n"
SIDES = [
    ("qrels with three columns", "unreadable", replaced(QRELS, "3:1 3:1 1\n")),
    ("qrels with commas", "unreadable", replaced(QRELS, "3:1,0,3:1,1\n")),
    ("qrels with a relevance of 0.5", "unreadable", replaced(QRELS, "3:1 0 3:1 0.5 8\n")),
    ("qrels with task 9", "unreadable", replaced(QRELS, "3:1 0 3:1 1 9\n")),
    ("qrels in TREC's four columns", "", replaced(QRELS, "3:1 0 3:1 1\n")),
    ("qrels of another query", "qrel-mismatch", replaced(QRELS, "3:2 0 3:1 1 8\n")),
    ("instructions missing", "no-instructions", lambda root: (root / TABLE).unlink()),
    ("instructions empty", "no-instructions", replaced(TABLE, "")),
    ("instructions with commas", "no-instructions", replaced(TABLE, HEAD.replace("\t", ","))),
    ("instructions with an unknown modality", "no-instructions",
     replaced(TABLE, HEAD + "video\ttext\tx\t3\tFind.\n")),
    ("instructions with two rows of a kind", "no-instructions",
     replaced(TABLE, HEAD + "image,text\timage,text\tx\t3\tFind.\n" * 2)),
    ("no instruction for a kind of query", "no-instruction",
     replaced(TABLE, HEAD + "image,text\timage,text\tx\t4\tFind.\n")),
    ("instruction left empty", "no-instruction",
     replaced(TABLE, HEAD + "image,text\timage,text\tx\t3\t \n")),
]  # fmt: skip


def _kinds() -> list[Kind]:
    kinds = []
    for name, reason, data in PICTURES:
        outcome = f"item fails: {reason}" if reason else "used"
        kinds.append(Kind("Pictures", name, reason, outcome, holds(data)))
    for name, reason, spoil in PATHS:
        outcome = f"item fails: {reason}" if reason else "used"
        kinds.append(Kind("Paths of pictures", name, reason, outcome, spoil))
    kinds += [Kind("Lines of a pool", name, "unreadable", "stops", spoil) for name, spoil in STOPS]
    kinds += [Kind("Lines of a pool", *row) for row in LINES]
    kinds += [Kind("Queries", *row) for row in ASKS]
    kinds += [Kind("Qrels and instructions", name, f, "used", spoil) for name, f, spoil in SIDES]
    return kinds


KINDS = _kinds()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind(root, kind):
    kind.spoil(root)
    report = validate(root, images="all", texts="none")
    found = [finding.kind for finding in report.findings]
    follow_up = {"no-positive", "dangling-positive", "dangling-negative", "qrel-mismatch"}
    wanted = kind.finding.split(", ") if kind.finding else []
    if kind.outcome == "stops" or kind.finding == "no-instruction":
        # An unreadable candidate or query is missing elsewhere, too.
        found = [name for name in found if name in wanted or name not in {*follow_up, "no-records"}]
    assert sorted(set(found)) == sorted(wanted)
    for finding in report.findings:
        assert finding.examples or finding.kind in ("no-pool", "no-records", "not-read")
    outcome(root, kind)


def outcome(root: Path, kind: Kind) -> None:
    """Run the command that reads the file, and compare."""
    query = kind.group not in ("Pictures", "Paths of pictures", "Lines of a pool")
    module, total = (queries, 1) if query else (corpus, 3)
    store = root.parent / "store"
    try:
        options = cli.Options(model="scripted:")
        summary = module.run(root, store, options=options)
    except ToolkitError as error:
        assert kind.outcome == "stops"
        assert str(root) in str(error)  # noqa: PT017 - either outcome may be the right one
        assert not store.exists()
        return
    summary.verify()
    reason = kind.outcome.removeprefix("item fails: ")
    if kind.outcome.startswith("item fails"):
        assert (summary.exit_code, summary.failed) == (3, {reason: 1})
        assert summary.generated == total - 1
        return
    assert summary.exit_code == 0
    assert not any(text.rejected for text in Store(store))
    if kind.outcome == "left alone":
        assert summary.skipped.total() == 1
    elif kind.outcome == "nothing to do":
        assert summary.total == 0
    else:
        assert kind.outcome == "used"
        # A picture that another item shows already is described once.
        assert summary.generated + summary.duplicates == total


def test_the_docs_list_every_kind_with_its_outcome():
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    listed = [tuple(part.strip() for part in line.strip("|").split("|")) for line in lines
              if line.startswith("|") and not line.startswith(("|---", "| kind"))]  # fmt: skip
    assert listed == [row(kind) for kind in KINDS]
    assert len(KINDS) >= 40
    assert len({kind.name for kind in KINDS if kind.group == "Pictures"}) == len(PICTURES)


def row(kind: Kind) -> tuple[str, str, str]:
    findings = (
        ", ".join(f"`{name}`" for name in kind.finding.split(", ")) if kind.finding else "nothing"
    )
    return kind.name, findings, kind.outcome
