"""The command line, ``python -m maskmod`` or ``maskmod``. It needs typer; without it, it says so, and what it can do.

`commands` holds a function for each command; `expressions` reads masks written on the command line.
"""

from __future__ import annotations

import os
import sys

from maskmod.errors import MaskError

__all__ = ["main"]

_BAD_INPUT = 2  # as typer and argparse exit on wrong arguments
_BUG = 70  # as sysexits.h has it: a fault of ours or of what we call
_WITHOUT = """maskmod: the command line needs typer, which is not installed. Run: pip install 'maskmod[cli]'
Without it there are `maskmod --version` and `maskmod env [--json]`. All of the rest is in the library:
    draw MASK       maskmod.draw(mask, q_len, kv_len)
    plot MASK       maskmod.plot(mask, q_len, kv_len).savefig("mask.png"), maskmod.to_html(mask, q_len, kv_len)
    check MODULE:F  maskmod.testing.check(fn)
    explain MASK    maskmod.select_backend(mask, B, H, q_len, kv_len)"""


def main() -> None:
    """Run the command in ``sys.argv``; exit with 1 if what was asked failed, 2 on wrong arguments, 70 on a fault."""
    try:
        import typer  # noqa: F401  (probed alone, so that another missing import is not blamed on it)
    except ImportError:
        sys.exit(_without_typer(sys.argv[1:]))
    from maskmod.cli.commands import app, wants_traceback

    try:
        app()
    except MaskError as error:
        if wants_traceback():
            raise
        print(f"maskmod: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except BrokenPipeError:  # what reads us has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if wants_traceback():
            raise
        print(f"maskmod: {type(error).__name__}: {error}", file=sys.stderr)
        print("maskmod: run it again as `maskmod --traceback ...` to see where.", file=sys.stderr)
        sys.exit(_BUG)


def _without_typer(arguments: list[str]) -> str | int:
    if arguments[:1] == ["--version"]:
        from maskmod import __version__

        print(f"maskmod {__version__}")
        return 0
    if arguments[:1] == ["env"]:
        from maskmod.cli.environment import as_text, environment

        print(as_text(environment(), as_json="--json" in arguments))
        return 0
    return _WITHOUT
