"""Pictures that stay in the tars they came in: what opens them, and what is refused."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from augment import import_data
from augment.__main__ import main as augment
from augment.data import DataRoot, read_candidates
from augment.data.images import content_hash, open_image, read_picture
from augment.data.sources import Bounds
from augment.data.sources.forms import add_member
from augment.data.validate import validate
from augment.errors import ImageError
from retrievers import Searcher
from retrievers.data.module import MBeirData
from retrievers.data.pictures import ImageLoader
from retrievers.export.records import pairs
from retrievers.models.towers import load_clip
from retrievers.search.serve import search_app
from tests.augment.data.sources.test_your_data import run
from tests.retrievers.models.test_retriever import make_root


def packed(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def shards(folder: Path) -> dict[str, Image.Image]:
    """Two tars, with names longer than a header has room for; the pictures by id."""
    folder.mkdir()
    made = {}
    for shard, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(folder / f"{shard}.tar", "w", format=form) as tar:
            for number in range(3):
                key = f"{'long' * 40 * (number == 1)}{shard}{number}"
                pixels = np.random.default_rng(10 * shard + number).integers(0, 255, (40, 60, 3))
                made[key] = Image.fromarray(pixels.astype(np.uint8))
                members = {"png": packed(made[key]), "txt": f"flag {shard}{number}".encode()}
                for ending, data in list(members.items())[: 2 - (number == 2)]:
                    add_member(tar, f"{key}.{ending}", data)
    return made


def shown(root: Path) -> dict[str, str]:
    """Id -> path of its picture."""
    (pool,) = DataRoot(root).pools()
    return {item.id: item.image or "" for item in read_candidates(pool.path)}


def test_from_tars_to_enriched_search_and_back(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = shards(tmp_path / "shards")
    assert run("augment import webdataset shards --out root") == 0
    files = sorted(path.name for path in Path("root/mbeir_images").rglob("*") if path.is_file())
    assert files == ["0.tar", "1.tar"]
    assert Path("root/mbeir_images/shards_images/0.tar").samefile("shards/0.tar")
    path_of = shown(Path("root"))
    assert path_of.keys() == made.keys()
    for key, path in path_of.items():
        assert np.array_equal(open_image(Path("root"), path), made[key])
    assert run("augment validate root --images all") == 0
    assert run("augment.corpus --root root --store texts --model scripted:") == 0
    assert run("augment report texts --root root --out page") == 0
    assert "data:image/jpeg;base64," in Path("page/report.html").read_text()
    assert run("retrievers embed --model=flagland-clip --data.root=root --out=run") == 0
    capsys.readouterr()
    made["02"].save("asked.png")
    search = "retrievers search --root root --json --checkpoint"
    for words, key in (
        ("flagland-clip --image asked.png", "02"),
        (f"bm25 --store texts {content_hash(Path('root'), path_of['00'])[:12]}", "00"),
    ):
        assert run(f"{search} {words}") == 0
        assert json.loads(capsys.readouterr().out)["results"][0]["id"] == key
    assert (
        run("augment export --root root --out again --to webdataset --store texts --query-view raw")
        == 0
    )
    assert run("augment import webdataset again --out twice") == 0
    told = {item.id: item.text for file in DataRoot(Path("twice")).pools()
            for item in read_candidates(file.path)}  # fmt: skip
    assert "about picture" in told["00"]
    for key, path in shown(Path("twice")).items():
        assert np.array_equal(open_image(Path("twice"), path), made[key])


def test_formats_that_have_pictures_and_files_for_those_who_want_them(tmp_path):
    made = shards(tmp_path / "shards")
    import_data("webdataset", tmp_path / "shards", tmp_path / "root")
    for form, kind in {"mbeir": "", "beir": "beir", "datasets": "mteb"}.items():
        out, again = tmp_path / form, tmp_path / f"{form}-again"
        assert (
            augment(["export", f"--root={tmp_path / 'root'}", f"--out={out}", f"--to={form}"]) == 0
        )
        again = out if not kind else again
        if kind:
            import_data(kind, out, again)
        for key, path in shown(again).items():
            assert np.array_equal(open_image(again, path), made[key])
    import_data("webdataset", tmp_path / "shards", tmp_path / "files", pictures="files")
    assert {Path(path).suffix for path in shown(tmp_path / "files").values()} == {".png"}
    assert not list((tmp_path / "files").rglob("*.tar"))
    shutil.copy(tmp_path / "shards/0.tar", tmp_path / "0.tar")
    import_data("webdataset", tmp_path / "0.tar", tmp_path / "copy", pictures="copy")
    assert not (tmp_path / "copy/mbeir_images/0_images/0.tar").samefile(tmp_path / "0.tar")


def test_the_page_training_and_pairs(tmp_path):
    made, root = make_root(tmp_path / "made", items=4), tmp_path / "root"
    assert (
        augment(["export", f"--root={made}", f"--out={tmp_path / 'out'}", "--to=webdataset"]) == 0
    )
    import_data("webdataset", tmp_path / "out", root, instruction="Find it.")
    assert {path.suffix for path in root.rglob("mbeir_images/*/*")} == {".tar"}
    searcher = Searcher.open("bm25", root)
    page = TestClient(search_app({"bm25": searcher}), "http://127.0.0.1")
    drawn = Image.open(io.BytesIO(page.get("/image/7:1").content))
    assert (drawn.size, drawn.getpixel((8, 8))[1] > 240) == ((16, 16), True)
    processor = load_clip("flagland-clip", random_init=True)[1]
    path = next(iter(DataRoot(root).pools())).path
    path = next(item.image for item in read_candidates(path) if item.id == "7:1")
    loaders = [
        ImageLoader(root, processor, resized=tmp_path / "small"),
        ImageLoader(root, processor),
    ]
    assert torch.equal(loaders[0](path), loaders[1](path))
    assert len(list((tmp_path / "small").rglob("*.npy"))) == 1
    pairs(MBeirData(str(root), instructions=False), tmp_path / "pairs")
    rows = map(json.loads, (tmp_path / "pairs/train.jsonl").read_text().splitlines())
    named = [one for row in rows for one in (*row.get("images", ()),
             *(image for shown in row.get("positive_images", ()) for image in shown))]  # fmt: skip
    assert len(named) == 8
    assert {Image.open(one).getpixel((0, 0)) for one in named} == {
        (12 * n, 255 - 9 * n, 53 * n % 256) for n in range(4)}  # fmt: skip


def test_what_is_no_longer_there_and_what_was_never_allowed(tmp_path):
    shards(tmp_path / "shards")
    root = tmp_path / "root"
    done = import_data("webdataset", tmp_path / "shards", root, bounds=Bounds(max_pixels=2399))
    assert done.left_out["pictures: too-large"] == 6
    import_data("webdataset", tmp_path / "shards", tmp_path / "whole", pictures="copy")
    root = tmp_path / "whole"
    path = shown(root)["00"]
    tar, part, name = path.rsplit("/", 2)
    start, size, crc = part.split("-")
    assert content_hash(root, path) == content_hash(root, f"{tar}/{part}/other.png")
    for other, reason in (
        (f"{tar}/{start}-{int(size) - 1}-{crc}/{name}", "changed"),
        (f"{tar}/99999999-{size}-{crc}/{name}", "changed"),
        (f"../{tar}/{part}/{name}", "outside-root"),
        (f"gone.tar/{part}/{name}", "missing"),
    ):
        for ask in (open_image, read_picture, content_hash):
            with pytest.raises(ImageError) as caught:
                ask(root, other)
            assert caught.value.reason == reason
    with pytest.raises(ImageError, match="above the limit"):
        open_image(root, path, max_pixels=2399)
    (root / "link.tar").symlink_to(tmp_path / "shards/0.tar")
    with pytest.raises(ImageError, match="leads out of the data root"):
        open_image(root, f"link.tar/{part}/{name}")
    with (root / tar).open("r+b") as stream:  # in place, of the same length
        stream.seek(int(start) + int(size) // 2)
        stream.write(b"\x00\x01\x02")
    with pytest.raises(ImageError, match="which has changed; import it again"):
        open_image(root, path)
    report = validate(root, "all", "none")
    assert [(one.kind, one.count) for one in report.findings if one.kind == "changed"] == [
        ("changed", 1)]  # fmt: skip
