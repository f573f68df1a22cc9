"""Functions run on several gloo ranks: spawned together, bounded in time, their answers or errors brought back."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")  # torch is imported once for all ranks
_CONTEXT.set_forkserver_preload(["maskmod.distributed", "torch.distributed.tensor", "torch._dynamo"])


class Answer(NamedTuple):
    """What a rank came back with: a value, the text of an error, or neither where it died."""

    value: Any
    error: str | None
    seconds: float  # of CPU


def on_ranks(
    world: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0, collective: float = 30.0
) -> list[Answer]:
    """Run ``function(rank, world, *args)`` on every rank of a gloo group.

    Args:
        function: importable by name.
        timeout: seconds after which what still runs is stopped.
        collective: the process group's own timeout, in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            here, there = _CONTEXT.Pipe(duplex=False)
            process = _CONTEXT.Process(
                target=_child, args=(function, rank, world, f"{folder}/store", collective, there, args), daemon=True
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        end = time.monotonic() + timeout
        answers = [_answer(pipe, end, timeout) for pipe in pipes]
        for process in processes:
            process.join(max(0.0, min(5.0, end - time.monotonic())))
            if process.is_alive():
                process.kill()
        return answers


def values(answers: Sequence[Answer]) -> list[Any]:
    """The values of all ranks; an error of any of them fails the test."""
    for rank, answer in enumerate(answers):
        assert answer.error is None, f"rank {rank}:\n{answer.error}"
    return [answer.value for answer in answers]


def _answer(pipe: Any, end: float, timeout: float) -> Answer:
    if not pipe.poll(max(0.0, end - time.monotonic())):
        return Answer(None, f"still running after {timeout} seconds", 0.0)
    try:
        return pipe.recv()
    except EOFError:
        return Answer(None, None, 0.0)


def _child(
    function: Callable[..., Any], rank: int, world: int, store: str, collective: float, pipe: Any, args: tuple
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch.*")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=collective)
        )
        answer = Answer(function(rank, world, *args), None, time.process_time())
    except Exception:
        answer = Answer(None, traceback.format_exc(), time.process_time())
    pipe.send(answer)
    pipe.close()
    os._exit(0)  # a group whose partner died cannot be torn down
