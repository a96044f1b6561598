"""The command line: LightningCLI with subcommands, errors without tracebacks, one output folder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import resources
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

from augment.errors import DataError, ToolkitError
from retrievers import commands
from retrievers.data.module import MBeirData
from retrievers.models.audit import render_audits
from retrievers.models.blip import BlipFeatureFusion, BlipScoreFusion  # noqa: F401 - found by name
from retrievers.models.clip import ClipScoreFusion
from retrievers.models.clip_ff import ClipFeatureFusion  # noqa: F401 - found by its name
from retrievers.models.loading import check_checkpoint
from retrievers.training.base import Retriever
from retrievers.training.trainer import Trainer

#: Exit status of a run that a user can mend.
USER_ERROR = 2

#: Warnings about Lightning 2.6's own code, and about calling its command line from Python.
_NOISE = (
    r".*LightningCLI's args parameter",
    r".*isinstance.treespec, LeafSpec",
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*``instantiate_classes`` was deprecated",
    # The new word does not exist in the oldest jsonargparse that works.
    r"\s*skip_none parameter was deprecated",
)


#: What Lightning takes in place of a checkpoint's path.
_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")


class SaveSettings(SaveConfigCallback):
    """Writes the settings of a run to ``OUT/fit.yaml``, ``test.yaml`` and so on.

    Paths under ``out`` are written as ``${out}/...`` again, so that a later run with these settings
    and another ``--out`` does not write into this one's folder.
    """

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
    """Everything that any :class:`retrievers.training.base.Retriever` can be asked to do."""

    def __init__(self, args: Sequence[str] | None) -> None:
        self._arguments = sys.argv[1:] if args is None else list(args)
        # "omegaconf" resolves before overrides; "omegaconf+" after, and needs relative keys below
        # a subcommand.
        jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        super().__init__(
            Retriever,
            MBeirData,
            subclass_mode_model=True,
            save_config_callback=SaveSettings,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            trainer_class=Trainer,
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs={"parser_mode": "omegaconf+", "prog": "python -m retrievers"},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args if args is None else list(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What there is to run, and the arguments that are not for the command line."""
        skip = {"model", "datamodule", "verbose", "weights_only"}
        return {
            "fit": {*skip, "train_dataloaders", "val_dataloaders"},
            "validate": {*skip, "dataloaders"},
            "test": {*skip, "dataloaders"},
            "embed": skip,
            "mine": skip,
            "audit": skip,
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--out`` and the default retriever."""
        parser.add_argument(
            "--out", type=str, default="runs/retriever", help="Folder of checkpoints, logs, runs."
        )
        parser.link_arguments("out", "trainer.default_root_dir")
        parser.add_argument(
            "--embeddings",
            type=str | None,
            help="Folder that keeps embeddings: short for data.embeddings.folder.",
        )
        parser.set_defaults({"model": {"class_path": _path_of(ClipScoreFusion)}})

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and look at paths before Lightning opens the checkpoint for its settings."""
        super().parse_arguments(parser, args)
        if self.config.get("subcommand"):
            _check_paths(self.config[self.config.subcommand])

    def before_instantiate_classes(self) -> None:
        """Keep the settings of fit when test writes into the same folder."""
        self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"
        settings = self.config[self.subcommand]
        devices = str(settings.trainer.devices)
        if self.subcommand in ("test", "embed", "mine") and devices.isdigit() and devices != "1":
            raise DataError(
                f"{self.subcommand} embeds in one process; run it with --trainer.devices=1 (the "
                f"setting is {devices}), or in shares with data.embeddings.parts"
            )
        folder = settings.embeddings
        if (
            folder is None
            and self.subcommand in ("embed", "mine")
            and not settings.data.embeddings.folder
        ):
            folder = f"{settings.out}/embeddings"
        if folder is not None:
            settings.data.embeddings.folder = folder

    def before_fit(self) -> None:
        """Let checkpoints say how they came about."""
        self.model.arguments = self._arguments

    def after_embed(self) -> None:
        """Print what there is now."""
        told = "\n".join(self.model.embedded)
        sys.stdout.write(f"{told}\nembeddings: {self.datamodule.embeddings.folder}\n")

    def after_audit(self) -> None:
        """Print the tables."""
        folder = self.trainer.default_root_dir
        told = render_audits(self.datamodule.audits.items())
        sys.stdout.write(f"{told}\n{folder}/audit.json\n")

    def after_mine(self) -> None:
        """Print what became of the candidates."""
        tally = self.model.tally
        if tally is not None:
            folder = self.trainer.default_root_dir
            sys.stdout.write(f"{tally.table()}\n{folder}/negatives.parquet\n")

    def after_test(self) -> None:
        """Print the table."""
        results = self.model.results
        if results is not None:
            folder = self.trainer.default_root_dir
            sys.stdout.write(f"{results.table()}\n{results.notes()}runs: {folder}\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: as after ``python -m retrievers``; None takes the process's own.

    Returns:
        The exit status: 0, or 2 after an error that a user can mend, told in one line.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    if args is None:
        # In place, because Lightning starts the other processes of DDP with the same arguments.
        sys.argv[1:] = expand(sys.argv[1:])
    arguments = sys.argv[1:] if args is None else list(args)
    try:
        if arguments and arguments[0] in commands.COMMANDS:
            commands.run(expand(arguments))
        else:
            RetrieverCLI(None if args is None else expand(args))
    except ToolkitError as error:
        sys.stderr.write(f"error: {_told(error)}\n")
        return USER_ERROR
    except ValueError as error:
        # jsonargparse puts what a constructor raises behind one of its own.
        if not isinstance(error.__cause__, ToolkitError):
            raise
        sys.stderr.write(f"error: {_told(error.__cause__)}\n")
        return USER_ERROR
    except MisconfigurationException as error:  # Lightning's word for settings that do not go
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    return 0


def _check_paths(settings: Any) -> None:
    """Look at ``--out`` and ``--ckpt_path`` before models and data are opened.

    Raises:
        DataError: if one of them cannot be used.
    """
    if Path(settings.out).exists() and not Path(settings.out).is_dir():
        raise DataError("is a file; name a folder with --out", str(settings.out))
    path = settings.get("ckpt_path")
    if path is None or path in _CHECKPOINT_WORDS:
        return
    if (Path(path) / "meta.pt").is_file():
        return  # a folder of shards, written under trainer.strategy=ModelParallelStrategy
    if not Path(path).is_file():
        raise DataError(
            "no such checkpoint; fit writes OUT/checkpoints/latest.ckpt, best.ckpt and last.ckpt",
            str(path),
        )
    check_checkpoint(Path(path))


def expand(args: Sequence[str]) -> list[str]:
    """Names of packaged configs become their paths: ``--config flagland``."""
    folder = Path(str(resources.files("retrievers"))) / "configs"
    expanded: list[str] = []
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if equals and flag in ("--config", "-c"):
            expanded.append(f"{flag}={_config(value, folder)}")
        elif position and args[position - 1] in ("--config", "-c"):
            expanded.append(_config(arg, folder))
        else:
            expanded.append(arg)
    return expanded


def _config(value: str, folder: Path) -> str:
    packaged = folder / f"{value}.yaml"
    return str(packaged) if packaged.is_file() and not Path(value).exists() else value


def _told(error: ToolkitError) -> str:
    """The message; of an error from a loader process, its last line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    worker = lines[0].startswith("Caught ") if lines else False
    return lines[-1].partition(": ")[2] if worker else str(error)


def _path_of(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
