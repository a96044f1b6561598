"""A tiny root with hostile texts, and checkpoints of an untrained two-layer CLIP."""

import threading
from contextlib import contextmanager
from pathlib import Path

import torch

from augment import corpus, queries
from augment.data import DataRoot, write_candidates
from augment.data.pools import open_candidates
from augment.enrichment.pipeline import Options
from augment.records import Item
from retrievers.data.texts import TextRecipe, ViewConfig
from retrievers.models.clip import ClipScoreFusion
from retrievers.search.pictures import QueryPictures
from retrievers.search.searcher import Searcher
from retrievers.search.serve import address_of, listen, make_server, search_app
from tests.retrievers.models.test_retriever import checkpoint_of, make_config, make_root

HOSTILE = '<script>document.title = "owned"</script><img src=x onerror=alert(1)> & "quoted"'
SCRIPTED = Options(model="scripted:")


class World:
    """Root, store of scripted texts, and one checkpoint for each of two text recipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = make_root(folder / "root")
        self.config = make_config(folder)
        pool = self.root / "cand_pool" / "local" / "mbeir_squares_task3_cand_pool.jsonl"
        texts = list(open_candidates(pool))
        # One stands for what people write into data, one is long, one points out of the root.
        texts[0] = Item(texts[0].id, HOSTILE, (), "text")
        texts[1] = Item(texts[1].id, "word " * 200, (), "text")
        texts.append(Item("7:99", "a picture from elsewhere", ("../secret.png",), "image,text"))
        write_candidates(pool, texts)
        self.store = folder / "store"
        corpus.run(self.root, self.store, options=SCRIPTED)
        queries.run(self.root, self.store, options=SCRIPTED)
        torch.manual_seed(0)
        self.retriever = ClipScoreFusion(self.config)
        self.raw = self.checkpoint("raw", ViewConfig(), ViewConfig())
        generated = str(self.store)
        self.enriched = self.checkpoint(
            "enriched", ViewConfig("replace", generated), ViewConfig("append", generated)
        )

    def recipe(self, query: ViewConfig, candidates: ViewConfig) -> TextRecipe:
        instructions = DataRoot(self.root).instructions()
        return TextRecipe(query.open("query"), candidates.open("corpus"), "plain", instructions)

    def checkpoint(self, name: str, query: ViewConfig, candidates: ViewConfig) -> Path:
        """What fit would write after no step."""
        self.retriever.trained_on = self.recipe(query, candidates).fingerprint
        saved = checkpoint_of(self.retriever)
        path = self.folder / name / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save(saved, path)
        return path

    def searchers(self, **bounds) -> dict[str, Searcher]:
        """Both checkpoints; the one of generated text rewrites its queries."""
        given = {"store": self.store, "pictures": QueryPictures(**bounds)}
        return {
            "raw": Searcher.open(self.raw, self.root, **given),
            "enriched": Searcher.open(self.enriched, self.root, vlm="scripted:", **given),
        }


@contextmanager
def served(searchers, names=()):
    """The address of a page while it is served."""
    listening = listen("127.0.0.1", 0)
    server = make_server(search_app(searchers, names))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
