"""A retriever and its text recipe from a checkpoint, without a trainer or a config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

from augment.checks.lengths import LENGTHS
from augment.data import DataRoot, TextRule
from augment.errors import DataError, MismatchError
from augment.records import Side
from augment.store import Store
from augment.views import VIEWS, TextView, judged_under, open_view
from retrievers.data.mixtures import named_views
from retrievers.data.texts import TextRecipe, check_recipe
from retrievers.models.backbone import PACKAGED
from retrievers.models.blip import BlipFeatureFusion, BlipScoreFusion  # noqa: F401 - found by name
from retrievers.models.checkpoints import read_checkpoint
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.clip_ff import ClipFeatureFusion  # noqa: F401 - found by its name
from retrievers.training.base import Retriever

#: Beginnings of model names that need no checkpoint.
_MODELS = ("local-dir:", "hf-hub:")


def load_retriever(checkpoint: str | Path, device: str = "cpu") -> Retriever:
    """A retriever in evaluation mode.

    Args:
        checkpoint: a ``.ckpt`` file that ``fit`` wrote, a ``.pth`` file of UniIR's CLIP-SF or
            CLIP-FF, a folder that ``export`` wrote, or an open_clip model to take as it is:
            ``flagland-clip`` (packaged), ``local-dir:FOLDER`` or ``hf-hub:NAME``.
        device: where it runs.

    Raises:
        DataError: if there is no such checkpoint, or it is none of this package.
        MismatchError: if its weights do not fit its settings.
    """
    name = str(checkpoint)
    if name in PACKAGED or name.startswith(_MODELS):
        retriever: Retriever = ClipScoreFusion(name)
    elif Path(checkpoint).is_dir():
        retriever = Retriever.from_pretrained(checkpoint)
    else:
        retriever = _restored(Path(checkpoint))
    return retriever.eval().requires_grad_(False).to(device)


def _restored(path: Path) -> Retriever:
    if not path.is_file():
        raise DataError(
            f"no such checkpoint; name a .ckpt file that fit wrote (OUT/checkpoints/last.ckpt) or "
            f"a packaged model ({', '.join(PACKAGED)})",
            str(path),
        )
    saved = check_checkpoint(path)
    kind, settings = str(saved["class"]), dict(saved["settings"])
    if settings.get("model_name", "") is None:
        raise DataError(
            "holds towers of a size that UniIR did not release; take its weights into a model of "
            "that size with --model.init_from",
            str(path),
        )
    retriever = build(kind, settings, str(path))
    retriever.load_weights(path)
    return retriever


def check_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself; its tensors are mapped, not read.

    Raises:
        DataError: if it is none of this package, or damaged.
    """
    try:
        saved = read_checkpoint(path)["retriever"]
        return {**saved, "class": str(saved["class"]), "settings": dict(saved["settings"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is no checkpoint of this package ({type(error).__name__}: {str(error)[:200]}); name "
            "one that `python -m retrievers fit` wrote",
            str(path),
        ) from error


def build(kind: str, settings: Mapping[str, Any], where: str) -> Retriever:
    """A retriever without weights.

    Args:
        kind: name of its class.
        settings: as :meth:`~retrievers.training.base.Retriever.describe` told them.
        where: file that says so, for errors.

    Raises:
        DataError: if there is no such class, or it takes no such settings.
    """
    known = {found.__qualname__: found for found in _subclasses(Retriever)}  # type: ignore[type-abstract]
    if kind not in known:
        raise DataError(
            f"holds a {kind}; known retrievers: {', '.join(sorted(known))}. Import the module that "
            "defines it first",
            where,
        )
    try:
        return known[kind].from_settings(settings)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"a {kind} cannot be built from its settings ({error}); use the version of this "
            "package that wrote it, or fit again",
            where,
        ) from error


def _subclasses(kind: type[Retriever]) -> Iterator[type[Retriever]]:
    for found in kind.__subclasses__():
        yield found
        yield from _subclasses(found)


def open_recipe(
    trained_on: Mapping[str, str] | None,
    root: DataRoot,
    store: Path | None = None,
    allow_mismatch: bool = False,
) -> TextRecipe:
    """The text recipe that a checkpoint was trained on, opened on a root and a store.

    Of several recipes and lengths in a store, those of the training are found by their fingerprint.

    Args:
        trained_on: what the checkpoint remembers; None, of an untrained model, shows the
            published text without instructions.
        root: where the instructions are.
        store: folder of generated texts; needed unless both views are raw.
        allow_mismatch: where the store has no such recipe, take the one that is meant otherwise.

    Raises:
        DataError: if a store is needed and none is given.
        StoreError: if the store cannot be read, or has no texts of a side.
        MismatchError: if the store holds texts of other recipes only.
    """
    if trained_on is None:
        raw = (open_view("query"), open_view("corpus"))
        return TextRecipe(*raw, "plain", None)
    recipe = TextRecipe(
        _view("query", trained_on["query"], store, allow_mismatch),
        _view("corpus", trained_on["corpus"], store, allow_mismatch),
        cast("TextRule", trained_on["rule"]),
        root.instructions() if trained_on["instructions"] == "on" else None,
    )
    try:
        check_recipe(trained_on, recipe.fingerprint, allow_mismatch)
    except MismatchError as error:
        raise MismatchError(
            f"{error}. The store looked into is {store}; in a search, --allow-mismatch goes on"
        ) from error
    return recipe


def _view(side: Side, trained: str, store: Path | None, allow_mismatch: bool) -> TextView:
    """The view of the training; another one, to be refused or allowed, where it is not there.

    Of a mixture it is the named view, the one that tests show.
    """
    trained = next(iter(named_views(trained)), trained)
    view = trained.partition(":")[0]
    if view not in VIEWS:
        raise DataError(f"the checkpoint was trained on an unknown {side} view {view!r}")
    if view == "raw" or store is None:
        return open_view(side, view, store)
    opened = Store(store)
    names = [recipe.id for recipe in opened.recipes(side)]
    for name, length in product(names, LENGTHS):
        checks = judged_under(opened, side, name)
        if TextView(side, view, {"id": name}, {}, length, checks).name == trained:
            return open_view(side, view, store, name, length)
    any_other = names[0] if names and not allow_mismatch else None
    return open_view(side, view, store, any_other)
