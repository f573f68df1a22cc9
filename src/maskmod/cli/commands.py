"""The commands. Each reads its arguments, calls the library and prints; none computes anything itself."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from maskmod.cli.expressions import mask_from_text

__all__ = ["app"]

app = typer.Typer(
    help="Attention masks as one-line predicates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a plain traceback can be searched for
)
demo = typer.Typer(invoke_without_command=True)
app.add_typer(demo, name="demo")

_FAILED = 1


@app.command()
def draw(
    mask: Annotated[str, typer.Argument(help='"causal() & sliding_window(4)", or module:attribute.')],
    q_len: Annotated[int, typer.Option(help="Queries: rows of the picture.", min=1)] = 16,
    kv_len: Annotated[int | None, typer.Option(help="Keys: columns; as many as queries by default.", min=1)] = None,
    batch: Annotated[int, typer.Option("--B", help="Batch rows the mask is read at.", min=1)] = 1,
    heads: Annotated[int, typer.Option("--H", help="Heads the mask is read at.", min=1)] = 1,
    b: Annotated[int, typer.Option("--b", help="The batch row to draw.", min=0)] = 0,
    h: Annotated[int, typer.Option("--h", help="The head to draw.", min=0)] = 0,
) -> None:
    """Draw a mask: # is visible, . is hidden; a row for each query, a column for each key."""
    from maskmod.pictures.text import draw as picture_of

    typer.echo(picture_of(mask_from_text(mask), q_len, kv_len or q_len, B=batch, H=heads, b=b, h=h))


@app.command()
def explain(
    mask: Annotated[str, typer.Argument(help='"causal() & sliding_window(4)", or module:attribute.')],
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


def _say(line: str) -> None:
    print(line)
    sys.stdout.flush()  # a piped run shows its lines as they come


def _silent(line: str) -> None:
    pass
