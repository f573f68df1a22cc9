"""``python -m maskmod compat``: other libraries, as they are installed here, against what this one says of them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["compat"]

compat = typer.Typer(help="Other libraries, as installed here, against this one.", no_args_is_help=True)

_DIFFERS = 1


@compat.callback()
def _group() -> None:
    """Keeps ``check`` a command of its own while it is the only one."""


@compat.command()
def check(
    calls: Annotated[int, typer.Option(help="Random calls to compare.", min=1)] = 400,
) -> None:
    """Compare the installed transformers with maskmod's stand-ins, call by call, and print what differs.

    Exits with 1 if anything does.
    """
    from maskmod.compat.transformers.self_check import self_check

    try:
        found = self_check(calls)
    except ImportError:
        sys.exit("maskmod: transformers is not installed. Run: pip install transformers")
    typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(_DIFFERS)
