"""Tables of instructions in place of the published ones."""

import pytest

from augment.data import open_instructions, write_instructions
from augment.data.mmeb import PARTS, Subset, Target, reworded
from augment.data.root import InstructionRow
from augment.errors import DataError
from retrievers.data.module import MBeirData
from tests.retrievers.models.test_retriever import make_root

#: M-BEIR's sixteen kinds of query (UniIR, 2311.17136, Table 1).
MBEIR = {
    ("0", "text", "image"), ("0", "image", "text"), ("1", "text", "image"), ("1", "image", "text"),
    ("2", "text", "text"), ("2", "text", "image,text"), ("3", "text", "image,text"),
    ("4", "image", "image"), ("5", "image,text", "text"), ("5", "image,text", "image,text"),
    ("6", "image,text", "text"), ("6", "image,text", "image,text"), ("7", "image,text", "image"),
    ("8", "image,text", "image"), ("9", "text", "image"), ("9", "image", "text"),
}  # fmt: skip


def test_the_packaged_table_asks_every_data_set_for_inference():
    rows = open_instructions("rge").rows
    keys = {(row.dataset_id, row.query_modality, row.candidate_modality) for row in rows}
    assert {key for key in keys if key[0].isdigit()} == MBEIR
    assert {row.dataset_id for row in rows if not row.dataset_id.isdigit()} == set(PARTS["image"])
    assert all(len(row.prompts) == 1 and "epresent" not in row.prompts[0] for row in rows)


def test_a_table_takes_the_place_of_the_roots_own_and_is_known_by_its_bytes(tmp_path):
    root, path = make_root(tmp_path / "root", 6), tmp_path / "mine.tsv"
    both = [InstructionRow("text", "image", "squares", "7", ("Infer it:",)),
            InstructionRow("image", "text", "squares", "7", ("Name it:",))]  # fmt: skip
    write_instructions(path, both)
    mine = MBeirData(str(root), instructions=str(path))
    query, target = mine.test_plan().queries[0]
    assert mine.recipe.query(query, target).startswith("Infer it: ")
    before = mine.recipe.fingerprint
    assert MBeirData(str(root)).recipe.fingerprint["instructions"] == "on"
    write_instructions(path, [both[0]._replace(prompts=("Infer that:",)), both[1]])
    assert MBeirData(str(root), instructions=str(path)).recipe.fingerprint != before
    with pytest.raises(DataError, match="no table of instructions"):
        open_instructions("nothing")


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["Represent the picture: Is it red?", "Represent the picture: Is it big?"],
         ["Is it red?", "Is it big?"]),
        (["Represent the image for classification\n"] * 2, ["", ""]),
        (["no instruction", "none here"], ["no instruction", "none here"]),
    ],
)  # fmt: skip
def test_queries_of_mmeb_begin_with_other_words(texts, left):
    subset = Subset("GQA", [Target(text, "a.png") for text in texts], [Target("yes", None)])
    prompt = "Follow the question through objects and relations of the picture, step by step, and"
    want = [Target(f"{prompt} answer. {rest}".strip(), "a.png") for rest in left]
    assert reworded(subset, open_instructions("rge")).queries == want
    with pytest.raises(DataError, match="one query does not tell"):
        reworded(Subset("GQA", subset.queries[:1]), open_instructions("rge"))
    with pytest.raises(DataError, match="no instruction"):
        reworded(Subset("mine", subset.queries), open_instructions("rge"))
