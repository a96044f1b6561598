"""Text in pictures: RapidOCR, whose weights ship inside its wheel, through onnxruntime.

It reads what stands in a picture and knows nothing else: of a request only the picture counts. A
picture without text is answered with an empty text, which is no failure. The extra ``ocr`` brings
it; nothing is downloaded, and nothing but ``.onnx`` files is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any, final

import numpy as np

from augment.data.images import open_image
from augment.engines.base import Ask, Asked, Engine, EngineOptions, Replies, fingerprint
from augment.errors import EngineError, ImageError
from augment.records import Reply, Request

#: Where text is, which way up it is, what it says: a file each in the wheel.
PARTS = ("Det", "Cls", "Rec")
#: Lines that are read with less confidence are left out; RapidOCR's own default.
MIN_SCORE = 0.5


@final
class OcrEngine(Engine):
    """Reads the text in pictures, line by line. Models are loaded on first use.

    Args:
        root: folder that image paths are relative to.
        threads: of the CPU; None takes all.

    Raises:
        EngineError: if the extra is not installed, or its wheel holds other files.
    """

    def __init__(self, *, root: Path, threads: int | None = None) -> None:
        self._files = model_files()
        self._root, self._threads = root, threads
        self._loaded: Any = None
        self.model = "rapidocr"
        self.revision = fingerprint(self._files.values())
        versions = {name: metadata.version(name) for name in ("rapidocr", "onnxruntime")}
        self.settings = {**versions, "min_score": MIN_SCORE}

    def batches(self, asked: Asked) -> Iterator[Replies]:
        """See :class:`Engine`; pictures are read one by one."""
        position = 0
        for said in asked:
            if not isinstance(said, Ask):
                yield []
                continue
            self.starting([said.request])
            yield [(position, self._answer(said.request))]
            position += 1

    def _answer(self, request: Request) -> Reply:
        if request.image is None:
            return Reply("", "error", reason="no-picture: there is nothing to read")
        try:
            picture = open_image(self._root, request.image, expected=request.expected)
        except ImageError as error:
            return Reply("", "error", reason=f"{error.reason}: {error}")
        try:
            # BGR, as OpenCV has it: RapidOCR takes an array as it is.
            found = self._load()(np.asarray(picture)[:, :, ::-1])
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - others' program, which may fail in any way
            return Reply("", "error", reason=f"engine: {error}".replace("\n", " "))
        return Reply("\n".join(line.strip() for line in found.txts or ()))

    def _load(self) -> Any:
        if self._loaded is None:
            from rapidocr import RapidOCR

            # Files by their paths: where one is not named, RapidOCR may download.
            files = {f"{part}.model_path": str(path) for part, path in self._files.items()}
            threads = {"EngineConfig.onnxruntime.intra_op_num_threads": self._threads or -1}
            quiet = {"Global.log_level": "critical", "Global.text_score": MIN_SCORE}
            self._loaded = RapidOCR(params={**files, **threads, **quiet})
        return self._loaded


def model_files() -> dict[str, Path]:
    """Part of the reader -> its weights in the wheel."""
    found = util.find_spec("rapidocr")
    if found is None or found.origin is None or util.find_spec("onnxruntime") is None:
        raise EngineError(
            "the engine ocr needs rapidocr and onnxruntime; install them with "
            "`pip install 'reasoning-augmented-retrieval[ocr]'`"
        )
    folder = Path(found.origin).parent / "models"
    files = {part: sorted(folder.glob(f"*_{part.lower()}_*.onnx")) for part in PARTS}
    if any(len(paths) != 1 for paths in files.values()):
        raise EngineError(
            f"{folder} holds {sorted(path.name for path in folder.glob('*'))}, not one .onnx file "
            f"each of {', '.join(PARTS)}; install a rapidocr from 3.10 on, which ships them"
        )
    return {part: paths[0] for part, paths in files.items()}


def make(name: str, *, root: Path, options: EngineOptions) -> OcrEngine:
    """See :func:`augment.engines.load_engine`."""
    if name:
        raise EngineError(f"the engine ocr has one model and takes no name, got {name!r}")
    return OcrEngine(root=root, threads=options.threads)
