"""Lightning's trainer with one more thing to do: embed, and keep the vectors."""

from __future__ import annotations

from typing import final

import lightning

from augment.errors import DataError
from retrievers.base import Retriever
from retrievers.data import MBeirData


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
