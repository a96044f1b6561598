"""The grammar of the commands: options out of signatures, errors as one line and an exit code.

An option is documented once, where the function or the dataclass that takes it is. ``batch_size``
is spelled ``--batch-size``, a sequence takes several words, and a switch none.
"""

from __future__ import annotations

import inspect
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import (
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
    set_loader,
)

from augment.errors import StoreWriteError, ToolkitError
from augment.files import homes, legible_output, say

#: Marks of reStructuredText that mean nothing on a terminal.
_MARKS = re.compile(r":\w+:`~?(?:\w+\.)*(\w+)`|``([^`]*)``")


def know_homes(mode: str) -> None:
    """Let ``~`` be the home folder in the configs that jsonargparse reads in this mode."""
    ArgumentParser(parser_mode=mode).parse_string("{}")  # loads the loader
    load = get_loader(mode)
    set_loader(mode, lambda text: homes(load(text)), exceptions=(yaml.YAMLError,))


know_homes("yaml")

_METAVARS = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT", "bool": "BOOL"}


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults behind every option; the description and the exit codes keep their lines."""


def parser(prog: str, description: str, epilog: str = "") -> ArgumentParser:
    """A parser that reads YAML files with its options, too."""
    made = ArgumentParser(
        prog=prog, description=_plain(description), epilog=epilog, formatter_class=_Help
    )
    made.add_argument("--config", action="config", metavar="FILE", help="YAML with these options.")
    return made


def add_options(
    made: ArgumentParser,
    source: Callable[..., Any],
    *,
    positional: Collection[str] = (),
    skip: Collection[str] = (),
) -> None:
    """Add an option for every parameter of a function, or field of a dataclass.

    ``positional`` ones are given without their names; ``skip`` names parameters that are none.
    """
    hints, texts = get_type_hints(source), _documented(source)
    for name, parameter in inspect.signature(source).parameters.items():
        if name in skip:
            continue
        kind, several = _kind(hints[name])
        plain = (get_args(kind) or (kind,))[0]
        given: dict[str, Any] = {"help": texts.get(name, "")}
        required = parameter.default is parameter.empty
        if kind is bool and parameter.default is False:
            given["action"] = "store_true"
        else:
            given["type"] = {Path: str, Path | None: str | None}.get(kind, kind)
            given["metavar"] = _METAVARS.get(getattr(plain, "__name__", ""))
        if several:
            given["nargs"] = "+" if not required or name in positional else "*"
        if name in positional:
            left_out = {} if required else {"nargs": "?", "default": parameter.default}
            made.add_argument(name, **{**given, "metavar": name.upper(), **left_out})
            continue
        if required:
            given["required"] = True
        else:
            default = parameter.default
            default = str(default) if isinstance(default, Path) else default
            given["default"] = list(default) if several else default
        short = {"out": ["-o"], "k": ["-k"]}.get(name, [])  # as people expect it
        made.add_argument(*short, f"--{name.replace('_', '-')}", **given)


def values(parsed: Namespace, source: Callable[..., Any], skip: Collection[str] = ()) -> Any:
    """What :func:`add_options` added, as keyword arguments for ``source``."""
    found = {}
    for name, hint in get_type_hints(source).items():
        if name in inspect.signature(source).parameters and name not in skip:
            value, (kind, several) = parsed[name], _kind(hint)
            if kind in (Path, Path | None) and value is not None:
                value = [Path(one) for one in value] if several else Path(value)
            found[name] = value
    return found


def asked(
    function: Callable[..., Any],
    arguments: Sequence[str],
    prog: str,
    positional: Collection[str] = (),
) -> Any:
    """What a command line gives for a function, as keyword arguments."""
    made = parser(prog, (inspect.getdoc(function) or "").partition("\n\nArgs:")[0])
    add_options(made, function, positional=positional)
    return values(made.parse_args(list(arguments)), function)


def call(
    function: Callable[..., Any],
    arguments: Sequence[str],
    prog: str,
    positional: Collection[str] = (),
) -> int:
    """Call a function with the arguments of a command line.

    Returns:
        Its exit code; of what returns something else, that is printed, and its ``exit_code`` counts
        where it has one.
    """
    found = function(**asked(function, arguments, prog, positional))
    if isinstance(found, int):
        return found
    if found is not None:
        say(found)
    return getattr(found, "exit_code", 0)


def guarded(command: Callable[[], int]) -> int:
    """Run a command: errors that a user can mend become one line and an exit code."""
    legible_output()
    try:
        return command()
    except ToolkitError as error:
        say(f"error: {error}", sys.stderr)
        return 5 if isinstance(error, StoreWriteError) else 2
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on", sys.stderr)
        return 4


def entry(command: Callable[[Sequence[str]], int]) -> Callable[..., int]:
    """A command that is :func:`guarded`, and in whose words ``~`` is the home folder.

    Args:
        command: takes the arguments of a command line; returns the exit code.

    Returns:
        The same, which without arguments takes those of this process.
    """

    @wraps(command)
    def started(arguments: Sequence[str] | None = None) -> int:
        return guarded(
            lambda: command(homes(list(sys.argv[1:] if arguments is None else arguments)))
        )

    return started


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether an option takes several of them."""
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Collection):
        return get_args(hint)[0], True
    return hint, False


def _documented(source: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> its line in the docstring, those of a dataclass's bases included."""
    from docstring_parser import parse

    sources = reversed(inspect.getmro(source)) if isinstance(source, type) else [source]
    documented = (parse(inspect.getdoc(one) or "") for one in sources)
    return {
        one.arg_name: _plain(" ".join((one.description or "").split())).replace("%", "%%")
        for found in documented
        for one in found.params
    }


def _plain(text: str) -> str:
    return _MARKS.sub(lambda mark: mark[1] or mark[2], text)
