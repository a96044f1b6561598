"""A training, its data and its trainer out of a config, for those who run several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from augment.errors import DataError
from retrievers.data.module import MBeirData
from retrievers.data.named import expand
from retrievers.training.module import Contrastive

#: What `fit` itself tells the trainer; the last checkpoint is what counts.
_TOLD = ("callbacks", "logger", "limit_val_batches", "default_root_dir", "use_distributed_sampler")


class Parts(NamedTuple):
    """What a config of ``fit`` describes.

    Attributes:
        training: with its encoder.
        data: what is trained on.
        trainer: what :func:`retrievers.training.module.fit` takes besides.
        more: what was asked for besides, by name.
    """

    training: Contrastive
    data: MBeirData
    trainer: dict[str, Any]
    more: Mapping[str, Any]


def read_parts(
    arguments: Sequence[str], seed: int | None = None, more: Mapping[str, Callable[..., Any]] = {}
) -> Parts:
    """What a config and some of its settings describe.

    Args:
        arguments: of a command line: ``--config=NAME_OR_FILE``, ``--data.batch_size=8``.
        seed: of weights that start fresh; None takes the config's ``seed_everything``.
        more: name -> class of further settings, such as a verb's own.

    Raises:
        DataError: if there is no such setting.
    """
    import lightning
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    # A config may name what its place is typed for, an encoder, and no class of anything else.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    parser = ArgumentParser(exit_on_error=False, parser_mode="omegaconf+")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Contrastive, "model", sub_configs=True)
    parser.add_class_arguments(MBeirData, "data", sub_configs=True)
    parser.add_argument("--trainer", type=dict[str, Any], default={})
    parser.add_argument("--seed_everything", type=int, default=0)
    for name, default in (("out", "runs/retriever"), ("embeddings", None)):  # as in a fit.yaml
        parser.add_argument(f"--{name}", type=str | None, default=default)
    for name, kind in more.items():
        parser.add_class_arguments(kind, name)
    parser.set_defaults({"model.encoder": {"class_path": "retrievers.models.clip.ClipScoreFusion"}})
    try:
        read = parser.parse_args(expand(arguments))
    except ArgumentError as error:
        raise DataError(str(error)) from error
    given = read.seed_everything if seed is None else seed
    lightning.seed_everything(given, workers=True, verbose=False)
    made = parser.instantiate(read)
    trainer, out = {"enable_progress_bar": False, **read.trainer}, read.out
    trainer["device"] = trainer.pop("accelerator", "auto")
    for name in _TOLD:
        trainer.pop(name, None)
    own: dict[str, Any] = {name: made[name] for name in more}
    read.trainer = {n: v for n, v in trainer.items() if n != "device"}
    for name in ("config", "out", "embeddings", "data.root", "data.loader", *more):
        read.pop(name, None)  # where, and how fast
    told = parser.dump(read, skip_validation=True)
    return Parts(made.model, made.data, trainer, {"out": out, "seed": given, "told": told, **own})
