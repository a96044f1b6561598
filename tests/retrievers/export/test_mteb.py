"""A retriever evaluated by the mteb library itself, on a tiny task built here."""

import numpy as np
import pytest
from PIL import Image

from augment.errors import DataError
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.mllm.layout import CrossLayout, Layout
from retrievers.models.reranker import scorer
from retrievers.vectors.embed import embed_contents, examples_of
from tests.retrievers.mllms import make
from tests.retrievers.models.test_retriever import make_config

mteb = pytest.importorskip("mteb", reason="the extra mteb is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
SHADES = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="module")
def retriever(tmp_path_factory):
    return ClipScoreFusion(make_config(tmp_path_factory.mktemp("mteb")))


def make_task(category, modalities, queries, corpus):
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Squares(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Squares", description="squares", type="Any2AnyRetrieval", category=category,
            modalities=modalities, main_score="hit_rate_at_1", eval_langs=["eng-Latn"],
            eval_splits=["test"], dataset={"path": "none/none", "revision": "1"}, prompt="Find it.",
            reference=None, date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="",
        )  # fmt: skip

        def load_data(self, num_proc=None, **kwargs):
            split = {
                "queries": Dataset.from_list(queries),
                "corpus": Dataset.from_list(corpus),
                "relevant_docs": {f"q{name}": {f"d{name}": 1} for name in SHADES},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Squares()


def evaluate(retriever, task):
    from retrievers.export.mteb import MtebEncoder

    result = mteb.evaluate(MtebEncoder(retriever), task, cache=None, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]


def test_scores_of_a_text_task_are_those_of_our_own_vectors(retriever):
    from retrievers.evaluation.metrics import score_run
    from retrievers.evaluation.run import RunTable

    queries = [{"id": f"q{name}", "text": f"a {name} square"} for name in SHADES]
    corpus = [{"id": f"d{name}", "text": f"{name} things", "title": ""} for name in SHADES]
    scores = evaluate(retriever, make_task("t2t", ["text"], queries, corpus))
    asked = embed_contents(
        retriever, [(f"Find it. {row['text']}", None) for row in queries], "query"
    )
    found = embed_contents(retriever, [(row["text"], None) for row in corpus], "corpus")
    products = (asked @ found.T).numpy()
    table = RunTable.from_search(
        [row["id"] for row in queries],
        [row["id"] for row in corpus],
        np.tile(np.arange(4), (4, 1)),
        products,
    )
    ours = score_run(table, {f"q{n}": {f"d{n}": 1} for n in SHADES}, ["ndcg@3", "success@1"])
    assert scores["ndcg_at_3"] == pytest.approx(ours.means()["ndcg@3"], abs=1e-4)
    assert scores["hit_rate_at_1"] == pytest.approx(ours.means()["success@1"], abs=1e-4)


def test_pictures_and_pictures_with_text_are_embedded(retriever):
    pictures = {name: Image.new("RGB", (16, 16), shade) for name, shade in SHADES.items()}
    queries = [{"id": f"q{n}", "image": p, "text": n} for n, p in pictures.items()]
    corpus = [{"id": f"d{name}", "image": picture} for name, picture in pictures.items()]
    scores = evaluate(retriever, make_task("it2i", ["text", "image"], queries, corpus))
    assert 0 <= scores["hit_rate_at_1"] <= 1


def test_batches_without_text_or_picture_are_refused(retriever):
    from retrievers.export.mteb import MtebEncoder

    task = make_task("t2t", ["text"], [{"id": "q", "text": "x"}], [{"id": "d", "text": "x"}])
    encoder = MtebEncoder(retriever)
    for batch, message in (({"audio": [1]}, "only text and image"), ({"text": [""]}, "neither")):
        with pytest.raises(DataError, match=message):
            encoder.encode([batch], task_metadata=task.metadata, hf_split="t", hf_subset="d")


def test_language_models_embed_rerank_and_do_both(folders):
    """The cascade keeps the first stage's two best, in the order of the reranker's own scores."""
    from mteb.models.models_protocols import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

    from retrievers.export.mteb import MtebCascade, MtebEncoder, MtebReranker

    pictures = {name: Image.new("RGB", (40, 40), shade) for name, shade in SHADES.items()}
    queries = [{"id": f"q{name}", "text": f"a {name} square"} for name in SHADES]
    corpus = [{"id": f"d{n}", "image": picture, "text": n} for n, picture in pictures.items()]
    model = make(folders["qwen3"])
    judge = scorer(make(folders["qwen3"], layout=Layout(cross=CrossLayout(yes="a", no="e"))))
    encoder, reranker = MtebEncoder(model), MtebReranker(judge)
    asked = [(f"Find it. {row['text']}", None) for row in queries]
    shown = [(row["text"], row["image"]) for row in corpus]
    products = embed_contents(model, asked, "query") @ embed_contents(model, shown, "corpus").T
    own = [judge.score(one, examples_of(judge.model.collator(), shown))
           for one in examples_of(judge.model.collator(), asked)]  # fmt: skip
    seen = {}
    for weights in (None, (1.0, 0.0)):
        cascade = MtebCascade(encoder, reranker, depth=2, weights=weights)
        inner = cascade.search
        cascade.search = lambda *a, inner=inner, w=weights, **o: seen.setdefault(w, inner(*a, **o))
        task = make_task("t2it", ["text", "image"], queries, corpus)
        mteb.evaluate(cascade, task, cache=None, show_progress_bar=False)
    for row, name in enumerate(SHADES):
        best = products[row].topk(2).indices.tolist()
        wanted = {f"d{list(SHADES)[n]}": float(own[row][n]) for n in best}
        assert seen[None][f"q{name}"] == pytest.approx(wanted, abs=1e-5)
        assert max(seen[1.0, 0.0][f"q{name}"].items(), key=lambda i: i[1]) == (
            f"d{list(SHADES)[best[0]]}", 1.0,
        )  # fmt: skip
    assert isinstance(encoder, EncoderProtocol)
    assert isinstance(reranker, CrossEncoderProtocol)
    assert isinstance(cascade, SearchProtocol)
    with pytest.raises(DataError, match="a listwise reranker orders whole lists"):
        MtebReranker(scorer(make(folders["qwen3"], preset="listwise", layout=None)))
