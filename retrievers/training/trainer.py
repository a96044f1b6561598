"""Lightning's trainer with more things to do: embed, mine hard negatives, audit texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

import lightning

from augment.errors import DataError
from augment.files import write_text
from retrievers.data.module import MBeirData
from retrievers.models.audit import Audit
from retrievers.search.mining import MiningConfig
from retrievers.training.base import Retriever


@final
class Trainer(lightning.Trainer):
    """See :class:`lightning.Trainer`."""

    def embed(
        self,
        model: Retriever,
        datamodule: MBeirData | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Embed what a test needs: candidates into FOLDER/corpus, its queries into FOLDER/query.

        What the folder has already is kept; what is new, changed or damaged is embedded. A run that
        was killed goes on where it stood. A root without queries gives all its pools.

        Args:
            model: the retriever.
            datamodule: the data; ``data.embeddings`` names the folder.
            ckpt_path: checkpoint with the weights.
        """
        if datamodule is None or datamodule.embeddings.folder is None:
            raise DataError("no folder for the embeddings; name one with --embeddings=FOLDER")
        datamodule.only_embed = True
        self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def audit(
        self,
        model: Retriever,
        datamodule: MBeirData | None = None,
        texts: int | None = None,
    ) -> None:
        """Count what the context of the text encoder cuts off, in training and in test.

        Writes ``audit.json``; no text is encoded.

        Args:
            model: the retriever whose tokenizer counts.
            datamodule: the data.
            texts: look at so many of each side, evenly spread; null for all.
        """
        if datamodule is None:
            raise DataError("an audit needs an M-BEIR root")
        datamodule.use(model.processor)
        stages = {"fit": "train", "test": datamodule.test.split}
        found: dict[str, Audit | None] = {}
        for stage, split in stages.items():
            if datamodule.root.query_files(split):
                datamodule.prepare(stage)
                found[stage] = datamodule.audited(stage, texts)
        if not found:
            raise DataError("no training or test queries", str(datamodule.root.path))
        told = {stage: audit and audit.to_json() for stage, audit in found.items()}
        write_text(Path(self.default_root_dir) / "audit.json", json.dumps(told, indent=1) + "\n")
        datamodule.audits = found

    def mine(
        self,
        model: Retriever,
        datamodule: MBeirData | None = None,
        ckpt_path: str | None = None,
        mining: MiningConfig = MiningConfig(),  # noqa: B008 - frozen
    ) -> None:
        """Write hard negatives of the training queries for ``data.negatives.path``.

        Vectors are kept and found again as by :meth:`embed`.

        Args:
            model: the retriever that ranks.
            datamodule: the data.
            ckpt_path: checkpoint with the weights.
            mining: which candidates become hard negatives.
        """
        if datamodule is None:
            raise DataError("mining needs an M-BEIR root")
        if datamodule.embeddings.parts > 1:
            raise DataError("mining needs all vectors; run it without data.embeddings.parts")
        datamodule.mining = mining
        try:
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)
        finally:
            datamodule.mining = None
