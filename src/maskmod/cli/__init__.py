"""The command line, ``python -m maskmod`` or ``maskmod``. It needs typer, and says so where typer is missing.

`commands` holds a function for each command; `expressions` reads masks written on the command line.
"""

from __future__ import annotations

import sys

from maskmod.errors import MaskError

__all__ = ["main"]

_BAD_INPUT = 2  # as typer and argparse exit on wrong arguments


def main() -> None:
    """Run the command in ``sys.argv`` and exit with its code."""
    try:
        import typer  # noqa: F401  (probed alone, so that another missing import is not blamed on it)
    except ImportError:
        sys.exit("maskmod: the command line needs typer, which is not installed. Run: pip install 'maskmod[cli]'")
    from maskmod.cli.commands import app

    try:
        app()
    except MaskError as error:
        print(f"maskmod: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
