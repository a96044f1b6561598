"""``python -m retrievers fit | validate | test``: LightningCLI, one output folder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import lightning
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from augment.enrichment.command import know_homes
from augment.errors import DataError
from augment.files import say
from retrievers.data.module import MBeirData
from retrievers.models.load import check_checkpoint, load_weights, read_checkpoint
from retrievers.training.callbacks import leave_out_chatter
from retrievers.training.module import Contrastive, Loaders, check_settings, trained
from retrievers.vectors.search import test

#: Warnings about Lightning 2.6's own code, and about calling its command line from Python.
_NOISE = (
    r".*LightningCLI's args parameter",
    r".*isinstance.treespec, LeafSpec",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*``instantiate_classes`` was deprecated",
    # The new word does not exist in the oldest jsonargparse that works.
    r"\s*skip_none parameter was deprecated",
)

#: What Lightning takes in place of a checkpoint's path, and those of OUT/checkpoints.
_CHECKPOINT_WORDS, _OWN_WORDS = ("hpc", "registry"), ("best", "last", "latest")


know_homes("omegaconf+")


class SaveSettings(SaveConfigCallback):
    """Writes the settings of a run to ``OUT/fit.yaml``, ``test.yaml`` and so on.

    Paths under ``out`` are written as ``${out}/...`` again, so that a later run with these settings
    and another ``--out`` does not write into this one's folder. They are written when the run has
    begun: one that is refused says nothing of settings.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Too early."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """A checkpoint to go on from has been read, and fits."""
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Likewise, outside a fit."""
        if trainer.state.fn == "validate":
            super().setup(trainer, pl_module, "validate")

    def save_config(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Called by Lightning on the first process."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        settings = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        out = settings.pop("out")
        settings.pop("ckpt_path", None)  # where this run began is no setting of the next one
        text = yaml.safe_dump({"out": out, **_relocatable(settings, out)}, sort_keys=False)
        (folder / self.config_filename).write_text(text, encoding="utf-8")


def _relocatable(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {key: _relocatable(inner, out) for key, inner in value.items()}
    if isinstance(value, list):
        return [_relocatable(inner, out) for inner in value]
    if isinstance(value, str) and (value == out or value.startswith(f"{out}/")):
        return "${out}" + value[len(out) :]
    return value


class RetrieverCLI(LightningCLI):
    """Fit, validate and test :class:`~retrievers.training.module.Contrastive`."""

    def __init__(self, args: Sequence[str] | None) -> None:
        self._arguments = sys.argv[1:] if args is None else list(args)
        # "omegaconf" resolves before overrides; "omegaconf+" after, and needs relative keys below
        # a subcommand.
        # A place without a type makes no class that a config names.
        jsonargparse.set_parsing_settings(
            omegaconf_absolute_to_relative_paths=True, instantiate_subclass_spec_in_any=False
        )
        # A config reads no environment: ``${oc.env:TOKEN}`` would stand in OUT/fit.yaml, too.
        OmegaConf.clear_resolver("oc.env")
        super().__init__(
            Contrastive,
            save_config_callback=SaveSettings,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "python -m retrievers"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args if args is None else list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What there is to run, and the arguments that are not for the command line."""
        skip = {"model", "datamodule", "verbose", "weights_only", "dataloaders"}
        return {
            "fit": {*skip, "train_dataloaders", "val_dataloaders"},
            "validate": skip,
            "test": skip,
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Trainer, training and data; the data is no class of Lightning's."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": v for key, v in self.trainer_defaults.items()})
        parser.add_class_arguments(Contrastive, "model", sub_configs=True)
        parser.add_class_arguments(MBeirData, "data", sub_configs=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--out`` and the default encoder."""
        parser.add_argument(
            "--out", type=str, default="runs/retriever", help="Folder of checkpoints, logs, runs."
        )
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.add_argument(
            "--embeddings",
            type=str | None,
            help="Folder that keeps embeddings: short for data.embeddings.folder.",
        )
        parser.set_defaults(
            {"model.encoder": {"class_path": "retrievers.models.clip.ClipScoreFusion"}}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and look at paths before Lightning opens the checkpoint for its settings."""
        super().parse_arguments(parser, args)
        if self.config.get("subcommand"):
            _check_paths(self.config[self.config.subcommand])

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: Lightning would import the classes that it names."""

    def before_instantiate_classes(self) -> None:
        """Keep the settings of fit when test writes into the same folder."""
        self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        settings = self.config[self.subcommand]
        devices = str(settings.trainer.devices)
        if self.subcommand == "test" and devices.isdigit() and devices != "1":
            raise DataError(
                "test embeds in one process; run it with --trainer.devices=1 (the setting is "
                f"{devices}), or embed in shares first, with data.embeddings.parts"
            )
        if settings.embeddings is not None:
            settings.data.embeddings.folder = settings.embeddings

    def instantiate_trainer(self, **given: Any) -> lightning.Trainer:
        """Lightning refuses settings of the trainer in words of its own."""
        try:
            return super().instantiate_trainer(**given)
        except ValueError as error:
            raise DataError(str(error)) from error

    def instantiate_classes(self) -> None:
        """What Lightning asks of data."""
        super().instantiate_classes()
        self.datamodule: Any = Loaders(self.datamodule)

    def before_fit(self) -> None:
        """Let checkpoints say how they came about, and name those that will be written over."""
        self.model.arguments = self._arguments
        latest = Path(self.trainer.default_root_dir, "checkpoints", "latest.ckpt")
        begins = self.config["fit"].ckpt_path is None and self.trainer.is_global_zero
        if begins and latest.is_file():
            say(f"warning: {latest} will be written over; to go on from it: --ckpt_path={latest}")

    def after_fit(self) -> None:
        """Say where the weights are and what to do with them."""
        if not self.trainer.is_global_zero:
            return
        out = Path(self.trainer.default_root_dir)
        saving: list[Any] = self.trainer.checkpoint_callbacks
        word = "last"  # a best.ckpt of an earlier fit may lie there
        for saved in saving:
            if getattr(saved, "best_model_path", "") and saved.best_model_score is not None:
                score = f"{saved.monitor} {float(saved.best_model_score):.3f}"
                say(f"best: {saved.best_model_path} ({score})")
                word = "best"
        say(f"next: python -m retrievers test --config={out / 'fit.yaml'} --ckpt_path={word}")

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "test":
            self._test()
        else:
            super()._run_subcommand(subcommand)

    def _test(self) -> None:
        """Embed, search, score; print the table."""
        trainer, model, settings = self.trainer, self.model, self.config_init["test"]
        for callback in getattr(trainer, "callbacks", ()):
            if isinstance(callback, SaveSettings):
                callback.save_config(trainer, model, "test")
        encoder = trained(model)
        if settings.ckpt_path is not None:
            path = Path(settings.ckpt_path)
            told = read_checkpoint(path).get("retriever", {}).get("training", {})
            check_settings(told, {"layout": encoder.settings().get("layout")})
            load_weights(encoder, path)
        results = test(
            encoder,
            self.datamodule.data,
            settings.out,
            device=trainer.strategy.root_device,
            precision=str(trainer.precision),
            allow_mismatch=model.allow_mismatch,
        )
        say(f"{results.table()}\n{results.notes()}runs: {settings.out}")


def main(args: Sequence[str] | None) -> None:
    """Run fit, validate or test.

    Args:
        args: as after ``python -m retrievers``; None takes the process's own, as the processes of
            DDP, which Lightning starts, need it.

    Raises:
        ToolkitError: if a user can mend it.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    leave_out_chatter()
    try:
        RetrieverCLI(args)
    except MisconfigurationException as error:  # Lightning's word for settings that do not go
        raise DataError(str(error)) from error
    except OmegaConfBaseException as error:
        told = ", ".join(line.strip() for line in str(error).splitlines()[:2])
        raise DataError(
            f"{told}; ${{...}} names another setting, such as ${{out}}, and no environment"
        ) from error


def _check_paths(settings: Any) -> None:
    """Look at ``--out`` and ``--ckpt_path`` before models and data are opened."""
    if Path(settings.out).exists() and not Path(settings.out).is_dir():
        raise DataError("is a file; name a folder with --out", str(settings.out))
    path = settings.get("ckpt_path")
    if path is None or path in _CHECKPOINT_WORDS:
        return
    if path in _OWN_WORDS:
        path = settings.ckpt_path = str(Path(settings.out, "checkpoints", f"{path}.ckpt"))
    if not Path(path).is_file():
        raise DataError(
            "no such checkpoint; fit writes OUT/checkpoints/latest.ckpt, best.ckpt and last.ckpt, "
            "and such a word alone means that of --out",
            str(path),
        )
    check_checkpoint(Path(path))
