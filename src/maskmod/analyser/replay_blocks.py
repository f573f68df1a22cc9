"""The blocks of a mask, asked again and again while its tensors are rewritten in place: what a server's step needs.

The mask is recorded and brought into its normal form once. At each reading, what depends on a tensor is computed anew,
and what the mask computed from tensors while it was recorded as well. No tensor is asked for its value here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskmod.algebra import Mask, Sizes
from maskmod.analyser.expression import Node
from maskmod.analyser.normal_form import Table
from maskmod.analyser.reading import Reading
from maskmod.analyser.replay import again, is_ours, now
from maskmod.analyser.summaries import Blocks

__all__ = ["BlocksReplay", "blocks_replay_of"]


class BlocksReplay:
    """Blocks of (queries, keys) of a recorded mask, as its tensors stand at each reading."""

    def __init__(self, reading: Reading, root: Node, block_size: tuple[int, int]):
        self._analysis, self._tape = reading.analysis(block_size, looks=False), root.tape
        self._analysis.grid()  # from here on every step and every form is there
        self._steps = len(self._tape.nodes)
        self._moving: list[Node] = []  # what depends on a tensor, each after those it needs
        self._remade: list[tuple[Node, list]] = []
        moves: set[int] = set()
        for node in self._tape.nodes:
            args = [again(a, self._tape) if isinstance(a, Tensor) else a for a in node.args]
            if any(new is not old for new, old in zip(args, node.args, strict=True)):
                self._remade.append((node, args))
            if any(isinstance(a, Tensor) or (isinstance(a, Node) and a.number in moves) for a in node.args):
                moves.add(node.number)
                self._moving.append(node)
        forms = self._tape.normal.forms.values()
        self._has_tables = any(isinstance(form, Table) for form in forms)  # compared while the form was made

    def read(self) -> tuple[Tensor, Tensor]:  # bool (B|1, H|1, n_q, n_kv) each
        """(must, may) of every block; a block in doubt is neither certainly visible nor certainly hidden."""
        del self._tape.nodes[self._steps :]  # sums of the last reading
        for node, args in self._remade:
            node.args = tuple(map(now, args))
        for node in self._moving:
            node._value = None
        if self._has_tables:
            self._tape.normal = None
        self._analysis.blocks = Blocks(self._tape, self._analysis.block_size, looks=False)
        return self._analysis.grid()


def blocks_replay_of(
    mask: Mask, sizes: Sizes, device: torch.device, block_size: tuple[int, int]
) -> BlocksReplay | None:
    """A replay of the blocks of ``mask``, or None where it holds a user's function, or one that cannot be recorded."""
    if 0 in sizes or not is_ours(mask):
        return None
    reading = Reading(mask, sizes, device)
    return None if reading.traced or reading.root is None else BlocksReplay(reading, reading.root, block_size)
