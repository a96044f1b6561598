"""The dry run for real M-BEIR: every missing part by name, the arithmetic by hand."""

import pytest

from benchmarks import mbeir


def test_an_empty_folder_lacks_everything_by_name(tmp_path, capsys):
    assert mbeir.main(["--root", str(tmp_path / "mbeir")]) == 1
    told = capsys.readouterr().out
    for name in ("query/test/mbeir_cirr_task7_test.jsonl", "instructions/query_instructions.tsv",
                 "cand_pool/global/mbeir_union_test_cand_pool.jsonl",
                 "mbeir_images (pictures)"):  # fmt: skip
        assert f"MISSING  {name}" in told
    assert "huggingface-cli download TIGER-Lab/M-BEIR" in told


def test_what_is_there_is_not_missing(tmp_path, capsys):
    file = tmp_path / "instructions" / "query_instructions.tsv"
    file.parent.mkdir()
    file.write_text("x")
    coco = tmp_path / "cand_pool" / "local" / "mbeir_mscoco_task0_test_cand_pool.jsonl"
    coco.parent.mkdir(parents=True)
    coco.write_text('{"did": "9:1", "img_path": "mbeir_images/a.jpg"}\n')
    mbeir.main(["--root", str(tmp_path)])
    told = capsys.readouterr().out
    assert "there    instructions/query_instructions.tsv" in told
    assert "MISSING  cand_pool/local/mbeir_mscoco_task0" not in told
    assert "MISSING  1 of 1 pictures looked for, first mbeir_images/a.jpg" in told


def test_the_sums():
    assert len(mbeir.ROWS) == 16
    assert sum(row[3] for row in mbeir.ROWS.values()) == pytest.approx(5600, abs=60)
    assert sum(row[2] for row in mbeir.ROWS.values()) == pytest.approx(190, abs=2)
    candidates, _, test = mbeir.pictured()
    # 542 + 5 + 201 + 1000 + 403 + 40 + 74 + 21 + 335 + 481 thousand
    assert candidates == pytest.approx(3_102_000)
    assert test == pytest.approx(135_100)
    told = mbeir.arithmetic(mbeir.Rates(3_102_000 / 3600, 1, 1, 1))
    assert "describe candidates: 3,102,000 / 861.667 a second / 3600 = 1.0 GPU-hours" in told


def test_published_and_assumed_rates_unless_there_are_your_own(tmp_path, capsys):
    mbeir.main(["--root", str(tmp_path)])
    told = capsys.readouterr().out
    assert "3,102,000 / 3.3 a second / 3600 = 261.1" in told
    assert "3,102,000 / 15 a second / 3600 = 57.4" in told
    mbeir.main(["--root", str(tmp_path), "--captions", "6.6"])
    told = capsys.readouterr().out
    assert "3,102,000 / 6.6 a second / 3600 = 130.6" in told
    assert told.count("describe candidates") == 1
