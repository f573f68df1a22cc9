"""The commands. Each reads its arguments, calls the library and prints; none computes anything itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from maskmod.cli.compat import compat
from maskmod.cli.expressions import mask_from_text, predicate_from_text
from maskmod.errors import MaskValueError

__all__ = ["app", "wants_traceback"]

app = typer.Typer(
    help="Attention masks as one-line predicates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` says in a line what went wrong; --traceback shows a plain one
)
demo = typer.Typer(invoke_without_command=True)
app.add_typer(demo, name="demo")
app.add_typer(compat, name="compat")

_FAILED = 1
_asked = {"traceback": False}

MaskText = Annotated[str, typer.Argument(metavar="MASK", help='"causal() & sliding_window(4)", or module:attribute.')]
KvLen = Annotated[int | None, typer.Option(help="Keys: columns; as many as queries by default.", min=1)]
Batch = Annotated[int, typer.Option("--B", help="Batch rows the mask is read at.", min=1)]
Heads = Annotated[int, typer.Option("--H", help="Heads the mask is read at.", min=1)]
Row = Annotated[int, typer.Option("--b", help="The batch row to show.", min=0)]
Head = Annotated[int, typer.Option("--h", help="The head to show.", min=0)]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON, and nothing else.")]


def wants_traceback() -> bool:
    """Whether an error is to be shown with its traceback."""
    return _asked["traceback"]


def _version(wanted: bool) -> None:
    if wanted:
        from maskmod import __version__

        typer.echo(f"maskmod {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")] = False,
) -> None:
    """Attention masks as one-line predicates: draw, check, explain and time them."""
    _asked["traceback"] = traceback


@app.command()
def draw(
    mask: MaskText,
    q_len: Annotated[int, typer.Option(help="Queries: rows of the picture.", min=1)] = 16,
    kv_len: KvLen = None,
    batch: Batch = 1,
    heads: Heads = 1,
    b: Row = 0,
    h: Head = 0,
    blocks: Annotated[int, typer.Option(help="Tokens in a block: draw blocks, not tokens.", min=0)] = 0,
    color: Annotated[bool | None, typer.Option("--color/--no-color", help="By default in a terminal.")] = None,
) -> None:
    """Draw a mask: # is visible, . is hidden; a row for each query, a column for each key; long masks in shades."""
    from maskmod.pictures.text import draw as picture_of

    if color is None:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    sizes: dict[str, Any] = {"B": batch, "H": heads, "b": b, "h": h}
    typer.echo(
        picture_of(mask_from_text(mask), q_len, kv_len or q_len, **sizes, blocks=blocks, color=bool(color)), color=color
    )


@app.command()
def plot(
    masks: Annotated[list[str], typer.Argument(metavar="MASK...", help="One mask, or several side by side.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="mask.png, .svg, .pdf, or .html to zoom in.")],
    q_len: Annotated[int, typer.Option(help="Queries: rows of the picture.", min=1)] = 64,
    kv_len: KvLen = None,
    batch: Batch = 1,
    heads: Heads = 1,
    b: Row = 0,
    h: Head = 0,
    difference: Annotated[bool, typer.Option(help="Of two masks, show where they differ.")] = False,
) -> None:
    """Write a picture of a mask to a file; .html is a page that zooms from a million tokens to single elements."""
    found = [mask_from_text(text) for text in masks]
    sizes: dict[str, Any] = {"B": batch, "H": heads, "b": b, "h": h}
    if output.suffix == ".html":
        if len(found) > 1:
            raise MaskValueError(f"plot -o {output}", f"{len(found)} masks", "A page shows one; write .png or .svg.")
        from maskmod.pictures.html import to_html

        to_html(found[0], q_len, kv_len or q_len, **sizes, path=output)
    else:
        from maskmod.pictures.plot import plot as figure_of

        figure_of(found, q_len, kv_len or q_len, **sizes, difference=difference).savefig(output)
    typer.echo(f"{output}: {output.stat().st_size} bytes")


@app.command()
def check(
    predicates: Annotated[list[str], typer.Argument(metavar="MODULE:ATTRIBUTE...", help="Predicates, or expressions.")],
    q_len: Annotated[int | None, typer.Option(help="Queries; by default what the tables reach.", min=1)] = None,
    kv_len: Annotated[int | None, typer.Option(help="Keys; by default what the tables reach.", min=1)] = None,
    batch: Annotated[int | None, typer.Option("--B", help="Batch rows.", min=1)] = None,
    heads: Annotated[int | None, typer.Option("--H", help="Heads; 1 says that all share one mask.", min=1)] = None,
    causal: Annotated[bool, typer.Option("--causal", help="A query that sees a later key is an error.")] = False,
    compiled: Annotated[bool, typer.Option(help="Trace it by Dynamo too, which takes most of the time.")] = True,
    as_json: AsJson = False,
) -> None:
    """Check predicates: what is wrong, at which line of yours, and what to write instead.

    Exits with 1 if there is an error or a warning.
    """
    from maskmod.testing import check as report_of

    sizes: dict[str, Any] = {"B": batch, "H": heads, "q_len": q_len, "kv_len": kv_len}
    reports = []
    for text in _progress(predicates, "checking", quiet=as_json):
        predicate = predicate_from_text(text)
        reports.append(report_of(predicate, **sizes, causal=causal, compiled=compiled))
        if not as_json:
            typer.echo(str(reports[-1]))
    if as_json:
        typer.echo(reports[0].to_json() if len(reports) == 1 else f"[{', '.join(r.to_json() for r in reports)}]")
    if not all(report.ok for report in reports):
        raise typer.Exit(_FAILED)


@app.command()
def bench(
    mask: MaskText,
    lengths: Annotated[list[int] | None, typer.Option("--length", help="Tokens; give it several times.", min=1)] = None,
    batch: Batch = 1,
    heads: Heads = 1,
    as_json: AsJson = False,
) -> None:
    """Time a mask: its blocks and its dense form, beside torch's builder and the plain lift; CPU time."""
    from maskmod.cli import bench as timing

    wanted = lengths or [1024, 4096, 16384]
    rows = timing.timings(mask_from_text(mask), batch, heads, wanted)
    found = list(_progress(rows, "timing", quiet=as_json, total=sum(2 + (n <= timing.DENSE_UP_TO) for n in wanted)))
    typer.echo(timing.as_json(found) if as_json else timing.as_table(found))


@app.command()
def env(as_json: AsJson = False) -> None:
    """Say what is installed: versions, extras, devices and backends, for a report of a fault."""
    from maskmod.cli.environment import as_text, environment

    typer.echo(as_text(environment(), as_json))


@app.command()
def explain(
    mask: MaskText,
    q_len: Annotated[int, typer.Option(help="Queries.", min=1)],
    kv_len: Annotated[int | None, typer.Option(help="Keys; as many as queries by default.", min=1)] = None,
    batch: Annotated[int, typer.Option("--B", help="Batch rows the mask is read at.", min=1)] = 1,
    heads: Annotated[int, typer.Option("--H", help="Heads the mask is read at.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, and nothing else.")] = False,
) -> None:
    """Say what a mask is, as far as it is proven, and what each backend gets of it or why it cannot have it."""
    from maskmod.cli.explain import explain as explained

    found = explained(mask_from_text(mask), batch, heads, q_len, kv_len or q_len)
    typer.echo(found.to_json() if as_json else str(found))


@app.command()
def load(
    mask: Annotated[str, typer.Argument(help="A mask, as for draw.")],
    length: Annotated[int, typer.Option(help="Tokens of the sequence.", min=1)] = 131072,
    world: Annotated[int, typer.Option(help="Ranks.", min=1)] = 8,
    layout: Annotated[str, typer.Option(help="contiguous, striped, head-tail or balanced.")] = "balanced",
    heads: Annotated[int, typer.Option("--H", help="Heads the mask is read at.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """What every rank of a sharded sequence would compute and fetch: area, blocks, keys, bytes, imbalance."""
    from maskmod import distributed as ranks

    read = mask_from_text(mask)
    layouts = {
        "contiguous": ranks.Contiguous,
        "striped": ranks.Striped,
        "head-tail": ranks.HeadTail,
        "balanced": lambda: ranks.Balanced(read, H=heads),
    }
    if layout not in layouts:
        raise typer.BadParameter(f"no layout {layout!r}: pass one of {', '.join(layouts)}", param_hint="--layout")
    figures = ranks.load(read, layouts[layout](), world, None, heads, length)
    typer.echo(figures.to_json() if as_json else str(figures))


@demo.callback()
def run_demo(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
) -> None:
    """Train a small language model on packed text, then generate from a static cache on every backend.

    Exits with 1 if a graph break, a recompile after warm-up or a token unlike the uncompiled run's was seen.
    """
    if context.invoked_subcommand is not None:
        return
    from maskmod.demo import run

    report = run(_silent if as_json else _say)
    if as_json:
        typer.echo(report.to_json())
    if not report.ok:
        raise typer.Exit(_FAILED)


@demo.command()
def serve(
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
) -> None:
    """Serve requests that come and go: continuous batching, chunked prefill, paged cache, drafts, two graphs.

    Exits with 1 if a recompile was seen, an answer unlike the uncompiled run's, or a page that was not given back.
    """
    from maskmod.demo.serve import run

    served = run(_silent if as_json else _say)
    if as_json:
        typer.echo(served.to_json())
    if not served.ok:
        raise typer.Exit(_FAILED)


def _progress(items: Iterable[Any], label: str, *, quiet: bool, total: int | None = None) -> Iterator[Any]:
    """The items, with a bar on standard error while a person is looking; rich's where it is installed."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    total = total if total is not None else len(list(items))
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        with typer.progressbar(items, length=total, label=label, file=sys.stderr) as bar:
            yield from bar
        return
    yield from track(items, label, total=total, console=Console(stderr=True), transient=True)


@demo.command()
def distributed(
    nproc: Annotated[int, typer.Option("--nproc", help="Ranks to spawn; torchrun's own count wins.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, and nothing else.")] = False,
) -> None:
    """Train on packed documents over several gloo ranks: context parallelism, held against one process.

    Also by torchrun: torchrun --nproc-per-node 4 -m maskmod demo distributed. Exits with 1 if a loss or a gradient
    differs from that of one process.
    """
    from maskmod.demo.distributed import run

    figures = run(_silent if as_json else _say, nproc, steps)
    if figures is None:  # a rank but the first, under torchrun
        return
    if as_json:
        typer.echo(figures.to_json())
    if not figures.ok:
        raise typer.Exit(_FAILED)


def _say(line: str) -> None:
    print(line)
    sys.stdout.flush()  # a piped run shows its lines as they come


def _silent(line: str) -> None:
    pass
