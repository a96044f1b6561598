"""Training pairs for other trainers, read as their documentation describes the records."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from augment import import_data
from augment.data import DataRoot, read_candidates, read_queries, write_queries
from augment.errors import DataError
from retrievers.cli import main
from retrievers.data.module import MBeirData
from retrievers.data.negatives import NegativesConfig
from retrievers.export.records import pairs
from tests.retrievers.models.test_retriever import make_root


@pytest.fixture
def squares(tmp_path):
    """Each query has the next two candidates as published negatives, one of them its positive."""
    root = make_root(tmp_path / "root", items=4)
    path = next((root / "query" / "train").iterdir())
    queries = list(read_queries(path))
    found = [
        replace(query, negatives=(query.positives[0], queries[n - 1].positives[0]))
        for n, query in enumerate(queries)
    ]
    write_queries(path, found)
    items = [i for p in (root / "cand_pool" / "local").iterdir() for i in read_candidates(p)]
    return root, found, {item.id: item for item in items}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_ms_swift_have_a_place_for_every_picture(squares, tmp_path, capsys):
    root, queries, items = squares
    given = [f"--data.root={root}", "--data.negatives.published=true", f"--out={tmp_path / 'out'}"]
    assert main(["pairs", "--config=flagland", *given, "--data.instructions=true"]) == 0
    assert "8 queries" in capsys.readouterr().out
    for row, query in zip(rows(tmp_path / "out" / "train.jsonl"), queries, strict=True):
        (said,) = row["messages"]
        assert said["role"] == "user"
        assert said["content"].endswith(query.item.text or "<image>Name it.")
        assert said["content"].count("<image>") == len(row.get("images", ()))
        negative = items[query.negatives[1]]
        for kind, item in (("positive", items[query.positives[0]]), ("negative", negative)):
            ((said,),) = row[f"{kind}_messages"]  # a positive is no negative
            (pictures,) = row.get(f"{kind}_images", [[]])
            assert said["content"] == "<image>" * len(item.images) + (item.text or "")
            assert pictures == [str((root / path).resolve()) for path in item.images]
            assert all(Path(path).is_file() for path in pictures)


def test_tevatrons_ids_are_those_of_its_corpus_and_passages_are_text(squares, tmp_path):
    root, queries, items = squares
    data = MBeirData(str(root), instructions=False)
    pairs(data, tmp_path / "one", "tevatron")
    corpus = {row["docid"]: row for row in rows(tmp_path / "one" / "corpus.jsonl")}
    assert set(corpus) == {did for query in queries for did in query.positives}
    for row, query in zip(rows(tmp_path / "one" / "train.jsonl"), queries, strict=True):
        assert row["query_id"] == query.item.id
        assert row["query_text"] == (query.item.text or "")
        assert (row["query_image"] is None) == (not query.item.images)
        assert row["positive_document_ids"] == list(query.positives)
        assert row["negative_document_ids"] == []
        shown = corpus[query.positives[0]]
        assert (shown["image"] is None) == (not items[query.positives[0]].images)
    with pytest.raises(DataError, match="has a picture, and passages are text"):
        pairs(data, tmp_path / "two", "tevatron_passages")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("form", ["ms_swift", "tevatron"])
def test_what_goes_out_comes_in_again(squares, tmp_path, form):
    """Queries with their positives and negatives, by what is in them; ids are of the format."""

    def told(root):
        data = DataRoot(root)
        items = {i.id: i for f in data.pools() for i in read_candidates(f.path)}

        def shown(item):
            pictures = [Path(root, path).read_bytes() for path in item.images]
            return item.text, *pictures

        queries = [q for f in data.query_files("train") for q in read_queries(f.path)]
        return {
            (shown(q.item), *(frozenset(shown(items[did]) for did in dids if did not in q.positives
                                        or dids is q.positives)
                              for dids in (q.positives, q.negatives)))
            for q in queries
        }  # fmt: skip

    root, _, _ = squares
    data = MBeirData(str(root), instructions=False, negatives=NegativesConfig(published=True))
    pairs(data, tmp_path / "out", form)
    import_data(
        form, tmp_path / "out" / "train.jsonl", tmp_path / "back", images=root,
        base=f"{root.resolve()}/",
    )  # fmt: skip
    assert told(tmp_path / "back") == told(root)


def test_passages_of_tevatron_come_in(tmp_path):
    passages = [{"docid": "d1", "title": "A", "text": "b"}, {"docid": "d2", "text": "c"}]
    row = {"query_id": "q", "query": "x", "positive_passages": passages[:1],
           "negative_passages": passages[1:]}  # fmt: skip
    source = tmp_path / "train.jsonl"
    source.write_text(json.dumps(row) + "\n")
    import_data("tevatron", source, tmp_path / "root")
    data = DataRoot(tmp_path / "root")
    pool = {i.id: i.text for i in read_candidates(data.pools()[0].path)}
    assert pool == {"d1": "A b", "d2": "c"}
    (query,) = read_queries(data.query_files("train")[0].path)
    assert (query.item.text, query.positives, query.negatives) == ("x", ("d1",), ("d2",))
    source.write_text(json.dumps({"query": "x"}) + "\n")
    with pytest.raises(DataError, match="has no query_id"):
        import_data("tevatron", source, tmp_path / "other")
