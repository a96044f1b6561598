"""Everything with weights: encoders, their training, embedding, search and scoring.

::

    from retrievers import ClipScoreFusion, Contrastive, MBeirData, Shown, fit, test

    data = MBeirData("data/mbeir", corpus=Shown("append", "texts"))
    model = fit(Contrastive(ClipScoreFusion("ViT-B-32", pretrained="openai")), data, "runs/rar")
    print(test(model, data))

What is named here is loaded when it is used, so that importing this package costs nothing. Worked
examples: ``docs/python.md``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrievers.data.module import EmbeddingConfig as EmbeddingConfig
    from retrievers.data.module import LoaderConfig as LoaderConfig
    from retrievers.data.module import MBeirData as MBeirData
    from retrievers.data.module import SearchConfig as SearchConfig
    from retrievers.data.negatives import NegativesConfig as NegativesConfig
    from retrievers.data.texts import ViewConfig as Shown  # noqa: F401 - its name here
    from retrievers.evaluation.compare import compare as compare
    from retrievers.evaluation.evaluate import evaluate as evaluate
    from retrievers.evaluation.metrics import score_run as score_run
    from retrievers.evaluation.results import Results as Results
    from retrievers.evaluation.run_files import read_table as read_table
    from retrievers.export.folder import export_to as export_to
    from retrievers.export.folder import push as push
    from retrievers.export.folder import save as save
    from retrievers.models.base import Encoder as Encoder
    from retrievers.models.blip import BlipFeatureFusion as BlipFeatureFusion
    from retrievers.models.blip import BlipScoreFusion as BlipScoreFusion
    from retrievers.models.clip import ClipFeatureFusion as ClipFeatureFusion
    from retrievers.models.clip import ClipScoreFusion as ClipScoreFusion
    from retrievers.models.load import load as load
    from retrievers.models.mllm.encoder import Mllm as Mllm
    from retrievers.models.reranker import scorer as scorer
    from retrievers.papers.rar import rar as rar
    from retrievers.search.answers import Answer as Answer
    from retrievers.search.answers import Result as Result
    from retrievers.search.cascade import rerank as rerank
    from retrievers.search.mining import MiningConfig as MiningConfig
    from retrievers.search.mining import mine_negatives as mine  # noqa: F401 - likewise
    from retrievers.search.searcher import Searcher as Searcher
    from retrievers.training.module import Contrastive as Contrastive
    from retrievers.training.module import fit as fit
    from retrievers.training.objective import Objective as Objective
    from retrievers.training.optim import AdamWCosine as AdamWCosine
    from retrievers.vectors.embed import embed as embed
    from retrievers.vectors.embed import embed_contents as embed_contents
    from retrievers.vectors.search import test as test

#: Name -> where it is, and what it is called there.
_PLACES = {
    "AdamWCosine": "training.optim:AdamWCosine",
    "Answer": "search.answers:Answer",
    "BlipFeatureFusion": "models.blip:BlipFeatureFusion",
    "BlipScoreFusion": "models.blip:BlipScoreFusion",
    "ClipFeatureFusion": "models.clip:ClipFeatureFusion",
    "ClipScoreFusion": "models.clip:ClipScoreFusion",
    "Contrastive": "training.module:Contrastive",
    "EmbeddingConfig": "data.module:EmbeddingConfig",
    "Encoder": "models.base:Encoder",
    "LoaderConfig": "data.module:LoaderConfig",
    "MBeirData": "data.module:MBeirData",
    "Mllm": "models.mllm.encoder:Mllm",
    "MiningConfig": "search.mining:MiningConfig",
    "NegativesConfig": "data.negatives:NegativesConfig",
    "Objective": "training.objective:Objective",
    "Result": "search.answers:Result",
    "Results": "evaluation.results:Results",
    "SearchConfig": "data.module:SearchConfig",
    "Searcher": "search.searcher:Searcher",
    "Shown": "data.texts:ViewConfig",
    "compare": "evaluation.compare:compare",
    "embed": "vectors.embed:embed",
    "embed_contents": "vectors.embed:embed_contents",
    "evaluate": "evaluation.evaluate:evaluate",
    "export_to": "export.folder:export_to",
    "fit": "training.module:fit",
    "load": "models.load:load",
    "mine": "search.mining:mine_negatives",
    "push": "export.folder:push",
    "rar": "papers.rar:rar",
    "read_table": "evaluation.run_files:read_table",
    "save": "export.folder:save",
    "rerank": "search.cascade:rerank",
    "scorer": "models.reranker:scorer",
    "score_run": "evaluation.metrics:score_run",
    "test": "vectors.search:test",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _PLACES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), there)
