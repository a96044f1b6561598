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
    from retrievers.commands.quickstart import quickstart as quickstart
    from retrievers.data.module import EmbeddingConfig as EmbeddingConfig
    from retrievers.data.module import LoaderConfig as LoaderConfig
    from retrievers.data.module import MBeirData as MBeirData
    from retrievers.data.module import SearchConfig as SearchConfig
    from retrievers.data.negatives import NegativesConfig as NegativesConfig
    from retrievers.data.texts import ViewConfig as Shown  # noqa: F401 - its name here
    from retrievers.evaluation.compare import compare as compare
    from retrievers.evaluation.evaluate import evaluate as evaluate
    from retrievers.evaluation.fusion import fuse as fuse
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

#: Module -> what of it is named here, and names that differ there.
_PLACES = {
    "commands.quickstart": ("quickstart",),
    "data.module": ("EmbeddingConfig", "LoaderConfig", "MBeirData", "SearchConfig"),
    "data.negatives": ("NegativesConfig",),
    "evaluation.compare": ("compare",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.fusion": ("fuse",),
    "evaluation.metrics": ("score_run",),
    "evaluation.results": ("Results",),
    "evaluation.run_files": ("read_table",),
    "export.folder": ("export_to", "push", "save"),
    "models.base": ("Encoder",),
    "models.blip": ("BlipFeatureFusion", "BlipScoreFusion"),
    "models.clip": ("ClipFeatureFusion", "ClipScoreFusion"),
    "models.load": ("load",),
    "models.mllm.encoder": ("Mllm",),
    "models.reranker": ("scorer",),
    "papers.rar": ("rar",),
    "search.answers": ("Answer", "Result"),
    "search.cascade": ("rerank",),
    "search.mining": ("MiningConfig",),
    "search.searcher": ("Searcher",),
    "training.module": ("Contrastive", "fit"),
    "training.objective": ("Objective",),
    "training.optim": ("AdamWCosine",),
    "vectors.embed": ("embed", "embed_contents"),
    "vectors.search": ("test",),
}
_MODULE = {name: (module, name) for module, names in _PLACES.items() for name in names}
_MODULE |= {"Shown": ("data.texts", "ViewConfig"), "mine": ("search.mining", "mine_negatives")}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = _MODULE[name]
    return getattr(import_module(f"{__name__}.{module}"), there)
