"""The demo over ranks: equal to one process, spawned or by torchrun; its command line."""

from __future__ import annotations

import json
import subprocess
import sys

from maskmod.demo.distributed import run


def silent(words: str) -> None: ...


def test_two_spawned_ranks_equal_one_process():
    figures = run(silent, 2, steps=2)
    assert figures is not None
    assert figures.ok
    assert figures.losses[1] < figures.losses[0]
    assert 0 < figures.bytes_sent < figures.bytes_of_all_gather
    by_name = {row.layout: row for row in figures.layouts}
    assert by_name["Balanced"].work_imbalance <= 1.003
    assert by_name["Balanced"].work_imbalance < by_name["Contiguous"].work_imbalance
    assert len(list(figures.table())) == 1 + len(by_name)


def test_by_torchrun_with_json():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "maskmod", "demo", "distributed", "--steps", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    assert (figures["ok"], figures["ranks"], figures["launcher"]) == (True, 2, "torchrun")


def test_load_on_the_command_line():
    command = [sys.executable, "-m", "maskmod", "load", "causal()", "--length", "4096", "--world", "4"]
    figures = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert figures["imbalance"] < 1.003
    assert sum(figures["area"]) == 4096 * 4097 // 2
    shown = subprocess.run([*command, "--layout", "contiguous"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Contiguous(): max/mean 1.7498 of area")
