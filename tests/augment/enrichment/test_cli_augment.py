"""The commands as users run them: exit codes, messages, kills, export."""

import gzip
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from augment import corpus, queries
from augment.__main__ import main
from augment.data import DataRoot, read_candidates, read_queries, write_candidates, write_queries
from augment.enrichment.command import entry, guarded
from augment.errors import StoreError
from augment.prompts import load_prompt
from augment.prompts.route import QUERY_PROMPTS
from augment.records import Item, Query, one_picture
from augment.store import Store, log, runs
from augment.views import open_view

HOME = Path(__file__).parents[3]
ITEMS = 90


@pytest.fixture
def root(tmp_path):
    base = tmp_path / "root"
    for folder in ("cand_pool/local", "query/train", "query/test", "qrels/test", "instructions"):
        (base / folder).mkdir(parents=True)
    (base / "mbeir_images").mkdir()
    pool = []
    for n in range(ITEMS):
        path = f"mbeir_images/{n}.png"
        Image.new("RGB", (8, 8), (n, 2 * n, 3)).save(base / path)
        pool.append(
            Item(f"3:{n}", f"country {n}" if n % 2 else None, one_picture(path), "image,text")
        )
    pool.append(Item("3:1000", "text alone", (), "text"))
    write_candidates(base / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl", pool)
    asked = [
        Query(Item("3:1", None, ("mbeir_images/1.png",), "image"), 4, ("3:1",)),
        Query(Item("3:2", "the capital", ("mbeir_images/2.png",), "image,text"), 8, ("3:2",)),
        Query(Item("3:3", "two stars", ("mbeir_images/3.png",), "image,text"), 7, ("3:3",)),
        Query(Item("3:4", "a flag", (), "text"), 0, ("3:4",)),
    ]
    write_queries(base / "query/test/mbeir_x_task7_test.jsonl", asked)
    write_queries(base / "query/train/mbeir_x_train.jsonl", asked[:1])
    (base / "qrels/test/mbeir_x_task7_test_qrels.txt").write_text("3:3 0 3:3 1 7\n")
    (base / "instructions/query_instructions.tsv").write_text("query_modality\n")
    return base


def program(name, root, *more, model="scripted:"):
    store = root.parent / "store"
    command = [sys.executable, "-m", f"augment.{name}", "--root", root, "--store", store]
    return [str(part) for part in (*command, "--model", model, *more)]


def command(module, root, *more, model="scripted:"):
    """Run in this process, which spares the start of an interpreter; the exit code."""
    try:
        return guarded(lambda: module.command(program("x", root, *more, model=model)[3:]))
    except SystemExit as end:
        return end.code


def texts(root, side="corpus", store="store"):
    return {item: t.text for item, t in Store(root.parent / store).texts(side).items()}


def written(root):
    found = Counter()
    for path in (root.parent / "store/wal").glob("*"):
        with path.open("rb") as file:
            records = [line.record for line in log.read(file) if line.record]
        found.update(record["key"] for record in records if record["kind"] == "text")
    return found


def test_first_signal_drains_and_exits_4(root):
    slow = program("corpus", root, "--batch-size", "3", model="scripted:?delay=0.1")
    running = subprocess.Popen(slow, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while running.poll() is None and not written(root):
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=300)
    assert running.returncode == 4, err.decode()
    assert "run the same command again" in out.decode()
    assert 0 < sum(written(root).values()) < ITEMS
    assert len(written(root)) % 3 == 0, "the running batch was not finished"


def test_every_share_of_a_job_takes_part_and_together_they_take_everything(root, capsys):
    store = Store(root.parent / "store")
    items = set()
    for part in range(3):
        assert runs.complete_recipes(store.folder, "corpus") == set()
        assert command(corpus, root, "--shard", f"{part}/3") == 0
        here = set(texts(root)) - items
        # A third of 90 pictures; five standard deviations.
        assert 8 < len(here) < 52
        assert f"{len(here)} generated" in capsys.readouterr().out
        items |= here
    assert items == {f"3:{n}" for n in range(ITEMS)}
    assert len(runs.complete_recipes(store.folder, "corpus")) == 1


def test_a_script_does_what_the_commands_do(root):
    import augment

    engine = augment.Options(model="scripted:").engine(root)
    store = augment.Store(root.parent / "api")
    data = augment.DataRoot(root)
    pool = list(read_candidates(data.pools()[0].path))
    done = augment.enrich(pool, "rar/corpus", engine, store, root=root)
    assert (done.generated, done.skipped) == (ITEMS, {"no picture": 1})
    asked = list(read_queries(data.query_files("test")[0].path))
    done = augment.enrich(asked, QUERY_PROMPTS, engine, store, root=root)
    assert (done.generated, done.skipped.total()) == (3, 1)
    assert command(corpus, root) == command(queries, root) == 0
    for side in ("corpus", "query"):
        assert dict(store.texts(side)) == dict(Store(root.parent / "store").texts(side))
    view = augment.open_view("corpus", "append", store.folder)
    assert view.text(pool[1]).startswith("country 1\nanswer to")
    assert augment.verify(store.folder).problems == {}
    assert [one.complete for one in augment.status(store)] == [True, True]


def test_bad_pictures_are_named_and_the_rest_survives(root, capsys):
    images = root / "mbeir_images"
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:40])
    (images / "1.png").unlink()
    (images / "2.png").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    )
    assert command(corpus, root) == 3
    out, err = capsys.readouterr()
    assert f"{ITEMS - 3} generated" in out
    assert "1 corrupt" in out
    assert "1 missing" in out
    assert "1 lfs-pointer" in out
    for n in range(3):
        assert f"failed: 3:{n} (mbeir_images/{n}.png): " in err
    Image.new("RGB", (8, 8)).save(images / "1.png")
    assert command(corpus, root) == 3, "two are still bad"
    assert " 1 generated" in capsys.readouterr().out


def test_queries_are_routed_and_text_is_left_alone(root, capsys):
    assert command(queries, root) == 0
    out = capsys.readouterr().out
    assert "1 listed again" in out
    assert "1 text (no picture)" in out
    store = Store(root.parent / "store")
    used = {item: t.prompt.partition("@")[0] for item, t in store.texts("query").items()}
    assert used == {
        "3:1": "rar/image_query",
        "3:2": "rar/question",
        "3:3": "rar/modification_shown",
    }
    before = texts(root, "query")
    first = store.recipe("query").id
    assert command(queries, root, "--modification-prompt", "rar/modification") == 0
    with pytest.raises(StoreError, match="2 query recipes"):
        texts(root, "query")
    (second,) = {recipe.id for recipe in store.recipes("query")} - {first}
    runs.choose(store.folder, second)
    after = texts(root, "query")
    assert {item for item in before if before[item] != after[item]} == {"3:3"}
    assert " 1 generated" in capsys.readouterr().out


def test_a_changed_prompt_file_regenerates_only_its_own(root, tmp_path, capsys):
    source = (HOME / "augment/prompts/rar/question.md").read_text()
    mine = tmp_path / "mine.md"
    mine.write_text(source)
    command(queries, root, "--question-prompt", str(mine))
    mine.write_text(source.replace("Never answer.", "Do not answer."))
    capsys.readouterr()
    command(queries, root, "--question-prompt", str(mine))
    assert " 1 generated" in capsys.readouterr().out
    assert len(list((root.parent / "store/recipes").iterdir())) == 2


def test_limit_and_config_file(root, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"limit": 7, "batch_size": 2}))
    assert command(corpus, root, "--config", str(config)) == 0
    assert " 7 items" in capsys.readouterr().out
    recipe = Store(root.parent / "store").recipe("corpus")
    assert recipe.prompts == {"rar/corpus": load_prompt("rar/corpus").id}
    with pytest.raises(SystemExit):
        corpus.command(program("corpus", root, "--limit", "9", "--print_config")[3:])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["limit"], printed["prompt"]) == (9, "rar/corpus")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--root", "/nowhere"], "no such folder"),
        (["--prompt", "nonsense"], "packaged prompts: "),
        (["--prompt", "/nowhere.md"], "no such prompt file"),
        (["--pool", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--model", "scripted:?x=1"], "fail_every"),
        (["--batch-size", "0"], "batch-size"),
        (["--batch_siz", "3"], "batch_siz"),
    ],
)
def test_usage_errors_exit_2_without_a_traceback(root, capsys, more, message):
    assert command(corpus, root, *more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("module", [corpus, queries])
def test_help_documents_the_exit_codes(module, capsys):
    with pytest.raises(SystemExit):
        module.command(["--help"])
    out = capsys.readouterr().out
    assert "3  some items failed" in out
    assert "--batch-size N" in out
    assert "<class" not in out


def test_home_is_known_in_every_path(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "answers.json").write_text('["A red flag with a star."]')
    prompt = (HOME / "augment/prompts/rar/corpus.md").read_text()
    (tmp_path / "mine.md").write_text(prompt)
    given = ["--root=~/root", "--store=~/s", "--model=scripted:~/answers.json"]
    assert entry(corpus.command)([*given, "--prompt=~/mine.md", "--limit=2"]) == 0
    assert len(Store(tmp_path / "s").texts("corpus")) == 2
    assert main(["status", "--store=~/s"]) == 0
    assert main(["validate", "~/root", "--images=none", "--texts=none"]) == 0
    assert main(["validate", "~/no: [\x1b"]) == 2  # a path, though no YAML
    (tmp_path / "a.yaml").write_text("root: ~/root\nstore: ~/s\nout: ~/page\n")
    assert main(["report", "--config=~/a.yaml", "~/s"]) == 0
    assert (tmp_path / "page" / "report.html").is_file()


@pytest.mark.parametrize("images", ["link", "copy", "symlink", "none"])
def test_export_is_a_plain_root(root, tmp_path, capsys, images):
    command(corpus, root)
    command(queries, root)
    out = tmp_path / "out"
    arguments = ["--root", str(root), "--store", str(tmp_path / "store"), "--out", str(out)]
    assert main(["export", *arguments, "--images", images]) == 0
    pool = "cand_pool/local/mbeir_x_task2_cand_pool.jsonl"
    view = open_view("corpus", "append", tmp_path / "store")
    before, after = (list(read_candidates(base / pool)) for base in (root, out))
    assert [(i.id, i.image, i.modality) for i in after] == [
        (i.id, i.image, i.modality) for i in before
    ]
    assert [i.text for i in after] == [view.text(i) for i in before]
    assert after[1].text.startswith("country 1\nanswer to")
    name = "query/test/mbeir_x_task7_test.jsonl"
    old, new = (list(read_queries(base / name)) for base in (root, out))
    assert [q.positives for q in new] == [q.positives for q in old]
    assert [q.item.text != o.item.text for q, o in zip(new, old, strict=True)] == [True] * 3 + [
        False
    ]
    for copied in (
        "qrels/test/mbeir_x_task7_test_qrels.txt",
        "instructions/query_instructions.tsv",
    ):
        assert (out / copied).read_bytes() == (root / copied).read_bytes()
    assert len(DataRoot(out).pools()) == 1
    picture = out / "mbeir_images/1.png"
    assert picture.exists() == (images != "none")
    assert picture.is_symlink() == (images == "symlink")
    # The exported root is itself input for the toolkit, and nothing half-written stays behind.
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]
    assert main(["export", *arguments]) == 2
    assert "exists" in capsys.readouterr().err


def test_an_export_of_packed_files_is_plain(root, tmp_path):
    pool = root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl"
    items = list(read_candidates(pool))
    pool.with_suffix(".jsonl.gz").write_bytes(gzip.compress(pool.read_bytes()))
    pool.unlink()
    qrels = root / "qrels/test/mbeir_x_task7_test_qrels.txt"
    qrels.with_suffix(".txt.gz").write_bytes(gzip.compress(qrels.read_bytes()))
    view = "--query-view=raw", "--corpus-view=raw"
    assert main(["export", f"--root={root}", f"--out={tmp_path / 'out'}", *view]) == 0
    written = tmp_path / "out" / pool.relative_to(root)
    assert written.read_bytes().startswith(b"{")
    assert list(read_candidates(written)) == items
    assert (tmp_path / "out/qrels/test" / f"{qrels.name}.gz").is_file()


def test_an_export_writes_through_no_link_and_takes_nothing_from_elsewhere(root, tmp_path, capsys):
    pool = root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl"
    (root / "README.md").write_text("mine")
    items = list(read_candidates(pool))
    names = ["README.md", "./readme.md", str(pool.relative_to(root)), "query/test/x.jsonl"]
    names += [f".//{pool.relative_to(root)}", ".//query//test/x.jsonl"]
    (root / "readme.md").write_text("mine")
    (root / "query/test/x.jsonl").write_text("")
    items += [
        Item(f"3:{2000 + n}", None, one_picture(name), "image") for n, name in enumerate(names)
    ]
    items.append(Item("3:3000", None, ("./mbeir_images//1.png",), "image"))  # one is there as such
    write_candidates(pool, items)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    command(corpus, root)
    arguments = ["export", f"--root={root}", f"--store={tmp_path / 'store'}", "--query-view=raw"]
    for images in ("link", "symlink"):
        out = tmp_path / images
        assert main([*arguments, f"--out={out}", f"--images={images}"]) == 0
        assert (
            f"{len(names) - 2} pictures under a name that an export needs"
            in capsys.readouterr().out
        )
        assert {path: path.read_bytes() for path in before} == before
        view = open_view("corpus", "append", tmp_path / "store")
        shown = list(read_candidates(out / pool.relative_to(root)))
        assert [item.text for item in shown] == [view.text(item) for item in items]
        assert (out / "README.md").read_text().startswith("---")
    secret = tmp_path / "secret.txt"
    secret.write_text("3:1 0 3:1 1 7\n")
    (root / "qrels/test/mbeir_y_task7_test_qrels.txt").symlink_to(secret)
    assert main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
    assert "leaves the root" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_path_forges_no_line_and_moves_no_cursor(root, capsys):
    pool = root / "cand_pool/local/mbeir_x_task2_cand_pool.jsonl"
    forged = "mbeir_images/x\nfailed: 3:5: forged\r\x1b[2J\u202e.png"
    write_candidates(pool, [Item("3:1", "say \x1b[31m", one_picture(forged), "image,text")])
    assert command(corpus, root) == 3
    assert command(corpus, root, "--preview", "1") == 3
    assert main(["status", "--store", str(root.parent / "store"), "--failures"]) == 0
    shown = "".join(capsys.readouterr())
    assert (
        "failed: 3:1 (mbeir_images/x\\nfailed: 3:5: forged\\r\\x1b[2J\\u202e.png): missing" in shown
    )
    assert not any(line.startswith(("failed: 3:5", "3:5")) for line in shown.splitlines())
    assert {letter for letter in shown if not letter.isprintable()} <= {"\n", "\ufffd"}


def test_a_second_run_of_the_same_share_is_told_that_it_pays_twice(root, capsys):
    store = root.parent / "store"
    assert command(corpus, root) == 0
    mine = runs.load_runs(store)[0]
    parent = replace(mine, id="other", ended=None, pid=os.getppid())
    for run, told in (
        (parent, True),
        (replace(parent, scope=replace(mine.scope, shard="0/2")), False),
        (replace(parent, ended=mine.ended), False),
        (replace(parent, host="elsewhere"), False),
    ):
        runs.save_run(store, run)
        capsys.readouterr()
        assert command(corpus, root) == 0
        assert ("makes the same texts" in capsys.readouterr().err) == told
