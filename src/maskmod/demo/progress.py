"""A progress bar on the terminal, by rich where it is installed; elsewhere, and when output is piped, nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that moves the bar on by one and shows a few words behind it. The bar vanishes at the end."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda words: None
        return
    # On stderr: what is printed meanwhile, and JSON, go to stdout untouched.
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.fields[words]}"))
    bar = Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
    with bar:
        task = bar.add_task(label, total=total, words="")
        yield lambda words: bar.update(task, advance=1, words=words)
