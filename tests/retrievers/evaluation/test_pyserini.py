import pytest

from augment.errors import DataError
from augment.records import Item
from retrievers.evaluation.pyserini import (
    Document,
    read_collection,
    read_topics,
    write_collection,
    write_topics,
)


def test_collections_go_there_and_back(tmp_path):
    items = [
        Item("9:1", "ein Haus\nam See", ("a.jpg",), "image,text"),
        Item("9:2", None, ("b.jpg",), "image"),
        Item("9:3", 'quoted "text"', (), "text"),
    ]
    path = tmp_path / "collection" / "docs.jsonl"
    assert write_collection(path, items, lambda item: item.text) == 1
    assert list(read_collection(path)) == [
        Document("9:1", "ein Haus\nam See"),
        Document("9:3", 'quoted "text"'),
    ]


def test_topics_go_there_and_back(tmp_path):
    topics = [Document("9:1", "which\tbridge\nis it?"), Document("9:2", "  ")]
    assert write_topics(tmp_path / "topics.tsv", topics) == 1
    assert list(read_topics(tmp_path / "topics.tsv")) == [Document("9:1", "which bridge is it?")]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_collection, '{"id": "9:1"}', ":1: expected"),
        (read_collection, "[]", ":1: expected"),
        (read_collection, "{", ":1: is not a line of JSON"),
        (read_collection, '{"id": "a", "contents": "b"}\n' * 2, ":2: id a was used before"),
        (read_topics, "9:1 no tab", ":1: expected 'id<TAB>text'"),
        (read_topics, "9:1\t ", ":1: expected 'id<TAB>text'"),
        (read_topics, "9:1\ta\n9:1\tb", ":2: id 9:1 was used before"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, read, text, message):
    (tmp_path / "f").write_text(text)
    with pytest.raises(DataError, match=f"f{message}"):
        list(read(tmp_path / "f"))
