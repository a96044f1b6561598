"""Pictures: a path of the data becomes RGB pixels or a hash, or an :class:`ImageError`.

Paths come from data files that others wrote, so they are confined to the data root, and sizes are
checked before anything is decoded. A path may name a part of a tar (:class:`TarPart`).
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, final
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps

from augment.errors import ImageError
from augment.files import sha256

#: Pillow's own limit for a suspected decompression bomb (``PIL.Image.MAX_IMAGE_PIXELS``).
MAX_PIXELS = 89_478_485

#: Seconds after a file's last change from which on its hash is remembered.
SETTLED_SECONDS = 2.0

#: Raster formats met in retrieval data. Pillow knows more, among them some that start programs. Its
#: reader of JPEG opens MPO, too.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: Endings of such files.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
#: Frames of a video that are shown, where nothing is said (VLM2Vec-V2, 2507.04590).
FRAMES = 8

_TAR_PART = re.compile(r"(.+\.tar)/([0-9]{1,15})-([0-9]{1,9})-([0-9a-f]{8})/[^/]+", re.DOTALL)
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
_FORBIDDEN = "may not be read by this user; change its permissions"
_BROKEN = (
    OSError,
    SyntaxError,  # Pillow's word for a malformed header
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)


class TarPart(NamedTuple):
    """A picture that stays in a tar, which is not packed: ``TAR/START-SIZE-CRC/NAME`` as a path.

    Opening it is one seek, and its CRC-32, in hex, tells whether the tar has changed since.
    """

    tar: str
    start: int
    size: int
    crc: str


def tar_part(path: str) -> TarPart | None:
    """The part of a tar that a path names; None if it names a file."""
    found = _TAR_PART.fullmatch(path)
    return TarPart(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def part_path(tar: str, start: int, data: bytes, name: str) -> str:
    """Path of a picture that stays in a tar (:class:`TarPart`); its name is for people."""
    return f"{tar}/{start}-{len(data)}-{zlib.crc32(data):08x}/{name}"


def holder(path: str) -> str:
    """Path of the file that holds a picture: its own, or that of the tar that it is in."""
    part = tar_part(path)
    return part.tar if part else path


def resolve(root: Path, path: str) -> Path:
    """The file that ``path`` names under ``root``, or the tar of its part; links are followed.

    Raises:
        ImageError: ``outside-root`` for a URL, an absolute path, ``..`` or a link that leaves the
            root; ``missing`` if there is no such file.
    """
    problem = _path_problem(path)
    if problem:
        raise ImageError(
            f"{problem}; expected a path relative to the data root, such as "
            "mbeir_images/<dataset>_images/name.jpg",
            path,
            "outside-root",
        )
    base = root.resolve()
    try:
        target, found = _looked_up(base, holder(path))
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long for the disk
        raise ImageError(f"cannot be looked up: {error}", path, "missing") from error
    if not target.is_relative_to(base):
        raise ImageError(
            f"a symbolic link leads out of the data root to {target}; copy the pictures under "
            f"{base} or mount them there",
            path,
            "outside-root",
        )
    if not found:
        raise ImageError(f"{_seen(target, path)} under {base}", path, "missing")
    return target


def frames(root: Path, path: str, number: int = FRAMES) -> tuple[str, ...]:
    """Paths of what a path shows: itself, or frames of a video where it names their folder.

    They are in the order of the numbers in their names, evenly from the first to the last as in
    VLM2Vec-V2's code (TIGER-AI-Lab/VLM2Vec, vision_utils.py); where one is wanted, the middle one;
    all where there are no more than wanted. A folder outside the root is refused when it is opened.

    Raises:
        ImageError: if the folder holds no picture.
    """
    base = root.resolve()
    folder = (base / path).resolve() if not _path_problem(path) else base
    if folder == base or not folder.is_relative_to(base) or not folder.is_dir():
        return (path,)
    names = [one.name for one in folder.iterdir() if one.name.lower().endswith(PICTURES)]
    if not names:
        raise ImageError(
            "is a folder without pictures; expected frames of a video", path, "missing"
        )
    names.sort(key=lambda name: [(not part.isdigit(), part.zfill(12).lower())
                                 for part in re.split(r"(\d+)", name)])  # fmt: skip
    wanted = np.linspace(0, len(names) - 1, number, dtype=int) if number > 1 else [len(names) // 2]
    chosen = names if len(names) <= number else [names[place] for place in wanted]
    return tuple(f"{path.rstrip('/')}/{name}" for name in chosen)


def _looked_up(base: Path, path: str) -> tuple[Path, bool]:
    """The file of a name as written, or else in another normal form of Unicode; whether it is one.

    An archive unpacked on a Mac names files in NFD, while data mostly names them in NFC.
    """
    for form in (path, normalize("NFC", path), normalize("NFD", path)):
        target = (base / form).resolve()
        if target.is_file():
            return target, True
    return (base / path).resolve(), False


def _seen(target: Path, path: str) -> str:
    if target.is_dir():
        return "is a folder, not a file,"
    if target.exists():
        return "is a pipe or device, not a file,"
    if "\\" in path:
        return "no such file; write forward slashes instead of backslashes; looked"
    return "no such file; check that the pictures are unpacked; looked"


def _path_problem(path: str) -> str:
    """Why a path may not be joined to the root, before touching the disk; empty if it may."""
    if not path or "\x00" in path:
        return "empty path or NUL character"
    if "://" in path or path.startswith("data:"):
        return "is a URL; pictures are never fetched"
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        return "is an absolute path"
    if ".." in path.replace("\\", "/").split("/"):
        return "climbs with '..'"
    return ""


def open_image(
    root: Path, path: str, max_pixels: int = MAX_PIXELS, expected: str = ""
) -> Image.Image:
    """Load one picture as RGB: upright by its EXIF tag, transparency put on white.

    Args:
        root: data root.
        path: relative path as the data names it.
        max_pixels: width times height above which the file is refused before decoding.
        expected: SHA-256 in hex of the bytes that are to be decoded; empty takes any.

    Returns:
        A fully loaded picture in mode ``RGB``; the file is closed.

    Raises:
        ImageError: see :func:`resolve`; also ``lfs-pointer``, ``too-large`` and ``corrupt``, and
            ``changed`` if the bytes are not those expected.
    """
    file = located(root, path)
    try:
        source = io.BytesIO(_bytes(file, path, expected)) if expected or tar_part(path) else file
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"has {width}x{height} pixels, above the limit of {max_pixels:,}; shrink it or "
                    "raise the limit",
                    path,
                    "too-large",
                )
            image.load()
            deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
            if image.mode in ("I", "F") and not deep:
                raise ImageError(
                    "has pixels of 32 bits, whose scale the file does not say; convert it to 8 or "
                    "16 bits",
                    path,
                )
            return _to_rgb(_eight_bits(image) if deep else _upright(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{error}; shrink the picture", path, "too-large") from error
    except PermissionError as error:
        raise ImageError(_FORBIDDEN, path) from error
    except _BROKEN as error:
        size = file.stat().st_size if file.exists() else 0
        raise ImageError(
            f"cannot be decoded ({type(error).__name__}: {error}; {size} bytes); fetch or "
            "convert it again",
            path,
        ) from error


def _bytes(file: Path, path: str, expected: str = "") -> bytes:
    """The bytes of a picture, read once: those that were hashed are those that are decoded."""
    part = tar_part(path)
    if part is None:
        data = file.read_bytes()
    else:
        with file.open("rb") as stream:
            stream.seek(part.start)
            data = stream.read(part.size)
        if len(data) < part.size or f"{zlib.crc32(data):08x}" != part.crc:
            told = f"no longer is that part of {file.name}, which has changed; import it again"
            raise ImageError(told, path, "changed")
    if expected and hashlib.sha256(data).hexdigest() != expected:
        raise ImageError(
            "was replaced since it was looked up; run the same command again, which takes it as "
            "it is then",
            path,
            "changed",
        )
    return data


def read_picture(root: Path, path: str) -> bytes:
    """The bytes of a picture as they are stored.

    Raises:
        ImageError: see :func:`resolve`; ``lfs-pointer``, because a pointer's bytes are not the
            picture's; ``corrupt`` if the file cannot be read; ``changed`` if a tar has others.
    """
    file = located(root, path)
    with _reading(path):
        return _bytes(file, path)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        forbidden = isinstance(error, PermissionError)
        raise ImageError(_FORBIDDEN if forbidden else f"cannot be read: {error}", path) from error


def content_hash(root: Path, path: str) -> str:
    """SHA-256 of a picture's bytes, 64 hex digits; equal bytes are the same picture."""
    if tar_part(path) is not None:
        return hashlib.sha256(read_picture(root, path)).hexdigest()
    file = located(root, path)
    with _reading(path):
        return sha256(file)  # block by block, however large the file is


@final
class PictureHashes:
    """Hashes of the pictures of one root; may be asked from several threads.

    A hash is remembered under the file's absolute path, size, modification time and inode. If any
    of them differs, the file is read. A file that changed in the last seconds is read and not
    remembered: within one tick of the clock it could change again unnoticed.

    ``remembered`` gives the hash that an earlier run kept under a name, if it did.
    """

    def __init__(self, root: Path, remembered: Callable[[str], str | None]) -> None:
        self._root = root
        self._remembered = remembered
        # Many candidates share a picture; its file is looked at once.
        self.hash = lru_cache(maxsize=200_000)(self._hash)

    def _hash(self, path: str) -> tuple[str, str]:
        """SHA-256 of a picture, and a name to remember it under; empty where it is not to be."""
        file = resolve(self._root, path)
        try:
            status = file.stat()
        except OSError as error:
            raise ImageError(f"cannot be looked up: {error}", path, "missing") from error
        inside = path[len(holder(path)) :]
        state = f"{file}{inside}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
        name = hashlib.blake2b(state.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        known = self._remembered(name)
        if known is not None:
            return known, ""
        settled = time.time() - status.st_mtime > SETTLED_SECONDS
        return content_hash(self._root, path), name if settled else ""


def located(root: Path, path: str) -> Path:
    """:func:`resolve`, which refuses the few lines of text that Git-LFS leaves in place of a file.

    Raises:
        ImageError: also ``lfs-pointer``; ``corrupt`` if the file cannot be read.
    """
    file, head = resolve(root, path), b""
    with _reading(path):
        if file.stat().st_size < _POINTER_BYTES:
            head = file.read_bytes()
    if head.startswith(_POINTER):
        raise ImageError(
            f"is a Git-LFS pointer of {len(head)} bytes, not a picture; run 'git lfs pull' where "
            "it came from",
            path,
            "lfs-pointer",
        )
    return file


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_BROKEN, UserWarning):  # a broken tag says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Upright 16-bit grey, which ``convert`` would clip; the transparent value becomes white.

    A TIFF may use fewer of the bits (tag 258), and 0 for white (tag 262).
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(_upright(image)).astype(np.uint32)
    grey = np.minimum(values * 255 // (2 ** tags.get(258, (16,))[0] - 1), 255)
    grey = 255 - grey if tags.get(262) == 0 else grey
    shown = np.where(values == image.info.get("transparency"), 255, grey)
    return Image.fromarray(shown.astype(np.uint8))
