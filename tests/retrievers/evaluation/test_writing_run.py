"""A run file that is written while its run is scored."""

import pytest

from augment.errors import DataError
from retrievers.evaluation.run import RunTable, read_table, write_run, writing_run


def _table(tag="5:"):
    return RunTable(["1:1", "1:2"], [f"{tag}1", f"{tag}2"], [0, 0, 1], [0, 1, 1], [0.5, 0.25, 1.0])


def test_the_file_is_there_afterwards_and_the_same(tmp_path):
    write_run(tmp_path / "plain.trec", _table(), "tag")
    with writing_run(tmp_path / "meanwhile.trec", _table(), "tag"):
        pass
    assert (tmp_path / "meanwhile.trec").read_bytes() == (tmp_path / "plain.trec").read_bytes()
    assert read_table(tmp_path / "meanwhile.trec").to_run() == _table().to_run()


def test_what_cannot_be_written_is_told_when_the_block_ends(tmp_path):
    reached = []
    with (
        pytest.raises(DataError, match="white space"),
        writing_run(tmp_path / "r.trec", _table("a b")),
    ):
        reached.append(True)
    assert reached
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_block_is_told_and_no_half_file_stays(tmp_path):
    with pytest.raises(KeyError), writing_run(tmp_path / "r.trec", _table()):
        raise KeyError("scoring")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["r.trec"])
