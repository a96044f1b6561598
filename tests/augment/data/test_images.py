"""Pictures: what is refused and why, and that pixels come out as they should."""

from __future__ import annotations

import hashlib
import io
import struct
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from augment.data.images import content_hash, open_image, resolve
from augment.errors import ImageError, printable

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def save(path: Path, image: Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def reason(root: Path, path: str, **options) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(root, path, **options)
    assert caught.value.where == path
    assert str(caught.value).startswith(f"{printable(path)}: ") or not path
    return caught.value.reason


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a.png",
        "x/../../a.png",
        "http://x/a.png",
        "data:image/png;base64,aa",
        "C:\\a.png",
        "x\\..\\..\\a.png",
        "",
        "a\x00.png",
    ],
)
def test_paths_that_leave_the_root(tmp_path, path):
    root = tmp_path / "root"
    save(root / "in.png", Image.new("RGB", (2, 2)))
    save(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    assert reason(root, path) == "outside-root"


def test_a_link_may_stay_inside_but_not_leave(tmp_path):
    root = tmp_path / "root"
    inside = save(root / "in.png", Image.new("RGB", (2, 2)))
    outside = save(tmp_path / "out.png", Image.new("RGB", (2, 2)))
    (root / "near.png").symlink_to(inside)
    (root / "far.png").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    assert resolve(root, "near.png") == inside.resolve()
    assert reason(root, "far.png") == "outside-root"
    assert reason(root, "loop.png") == "missing"


def test_a_root_that_is_itself_a_link_is_fine(tmp_path):
    save(tmp_path / "root" / "in.png", Image.new("RGB", (3, 2)))
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    assert open_image(tmp_path / "alias", "in.png").size == (3, 2)


@pytest.mark.parametrize(("named", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_normal_form_is_found(tmp_path, named, stored):
    name = "Ångström/café.png"
    save(tmp_path / unicodedata.normalize(stored, name), Image.new("RGB", (3, 2)))
    path = unicodedata.normalize(named, name)
    assert open_image(tmp_path, path).size == (3, 2)
    assert content_hash(tmp_path, path) == content_hash(
        tmp_path, unicodedata.normalize(stored, name)
    )


def test_files_that_are_no_picture(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    files = {
        "cut.jpg": (buffer.getvalue()[:-500], "corrupt"),
        "text.jpg": (b"not a picture", "corrupt"),
        "empty.jpg": (b"", "corrupt"),
        "page.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "corrupt"),
        "pointer.jpg": (POINTER, "lfs-pointer"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    assert {name: reason(tmp_path, name) for name in files} == {n: w for n, (_, w) in files.items()}
    assert reason(tmp_path, "folder.jpg") == reason(tmp_path, "absent.jpg") == "missing"


def test_every_cut_of_a_picture_is_either_refused_or_whole(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((12, 12), 50).save(buffer, "PNG")
    data = buffer.getvalue()
    for end in range(len(data)):
        (tmp_path / "x.png").write_bytes(data[:end])
        try:
            assert open_image(tmp_path, "x.png").size == (12, 12)
        except ImageError as error:
            assert error.reason == "corrupt"  # noqa: PT017 - either outcome is allowed


def test_size_is_checked_before_decoding(tmp_path):
    save(tmp_path / "big.png", Image.new("1", (400, 300)))
    data = bytearray((tmp_path / "big.png").read_bytes())
    del data[60:]  # header only: decoding it would fail as corrupt
    (tmp_path / "head.png").write_bytes(data)
    assert reason(tmp_path, "head.png", max_pixels=119_999) == "too-large"
    assert reason(tmp_path, "head.png") == "corrupt"
    assert open_image(tmp_path, "big.png", max_pixels=120_000).size == (400, 300)


def test_a_bomb_beyond_the_library_limit(tmp_path, monkeypatch):
    save(tmp_path / "big.png", Image.new("1", (40, 30)))
    for limit in (700, 300):  # the library warns above its limit and refuses above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert reason(tmp_path, "big.png") == "too-large"


def test_transparency_is_put_on_white(tmp_path):
    layer = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    layer.putpixel((1, 0), (0, 0, 255, 255))
    save(tmp_path / "a.png", layer)
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    save(tmp_path / "p.png", palette, transparency=0)
    for name in ("a.png", "p.png"):
        image = open_image(tmp_path, name)
        assert image.mode == "RGB"
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_sixteen_bits_with_a_transparent_value_or_as_ppm(tmp_path):
    image = Image.new("I;16", (2, 1), 128 * 257)
    image.putpixel((1, 0), 7)
    save(tmp_path / "t.png", image, transparency=7)
    (tmp_path / "p.ppm").write_bytes(b"P5 2 1 65535\n" + bytes([128, 128, 0, 7]))
    shown = {name: open_image(tmp_path, name) for name in ("t.png", "p.ppm")}
    assert [shown["t.png"].getpixel((x, 0)) for x in (0, 1)] == [(128,) * 3, (255,) * 3]
    assert [shown["p.ppm"].getpixel((x, 0)) for x in (0, 1)] == [(128,) * 3, (0,) * 3]


def tiff(bits, white, strip):
    """Two grey pixels in a row, as the tags say."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: 1, 279: len(strip)}
    where = 8 + len(strip)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", where)
    return head + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "white", "strip", "shown"),
    [
        (16, 1, b"\xff\xff\x00\x80", [255, 127]),
        (16, 0, b"\xff\xff\x00\x80", [0, 128]),
        (12, 1, b"\xff\xf8\x00", [255, 127]),
    ],
)
def test_sixteen_bits_are_scaled_by_what_the_file_says(tmp_path, bits, white, strip, shown):
    (tmp_path / "a.tiff").write_bytes(tiff(bits, white, strip))
    image = open_image(tmp_path, "a.tiff")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(value,) * 3 for value in shown]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_an_unknown_scale_are_refused(tmp_path, mode):
    save(tmp_path / "a.tiff", Image.new(mode, (2, 2), 1))
    with pytest.raises(ImageError, match="convert it to 8 or 16 bits"):
        open_image(tmp_path, "a.tiff")


def test_a_picture_of_two_views_is_opened_and_an_unknown_format_called_so(tmp_path):
    views = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    views[0].save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=views[1:])
    assert open_image(tmp_path, "two.jpg").getpixel((0, 0))[0] > 250
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match="UnidentifiedImageError"):
        open_image(tmp_path, "text.jpg")


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter clockwise
    save(tmp_path / "r.jpg", Image.new("RGB", (8, 4)), exif=exif)
    assert open_image(tmp_path, "r.jpg").size == (4, 8)


def test_content_hash_is_that_of_the_bytes(tmp_path):
    file = save(tmp_path / "a.png", Image.new("RGB", (2, 2)))
    assert content_hash(tmp_path, "a.png") == hashlib.sha256(file.read_bytes()).hexdigest()
    (tmp_path / "p.jpg").write_bytes(POINTER)
    with pytest.raises(ImageError, match="git lfs pull"):
        content_hash(tmp_path, "p.jpg")
