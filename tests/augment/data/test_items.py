"""Candidates and queries of a root together."""

import pytest

from augment.data import write_candidates, write_queries
from augment.data.items import RootItems
from augment.records import Item, Query


@pytest.mark.parametrize("side", ["corpus", "query"])
def test_union_files_count_only_where_there_are_no_others(tmp_path, side):
    folder, name = ("cand_pool", "test_cand_pool") if side == "corpus" else ("query", "train")
    paths = {"corpus": ("global", "local"), "query": ("union_train", "train")}[side]
    for number, (path, dataset) in enumerate(zip(paths, ("union", "x"), strict=True)):
        items = [Item(f"{number}:1", "text", (), "text"), Item("5:1", "text", ("a.jpg",), "text")]
        file = tmp_path / folder / path / f"mbeir_{dataset}_{name}.jsonl"
        if side == "corpus":
            write_candidates(file, items)
        else:
            write_queries(file, [Query(item, 0) for item in items])
        found = RootItems(tmp_path, side)
        assert [item.id for item in found] == [item.id for item in items]
        assert found.find("0:1") == (items[0] if number == 0 else None)
        assert found.with_picture() == 1
