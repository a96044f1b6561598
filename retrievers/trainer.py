"""Lightning's trainer with two more things to do: embed, and mine hard negatives."""

from __future__ import annotations

from typing import final

import lightning

from augment.errors import DataError
from retrievers.base import Retriever
from retrievers.data import MBeirData
from retrievers.mining import MiningConfig


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
