"""The second oracle: what a mask means, by four nested Python loops on ints.

Shares no code with the library: a specification is a plain function of four ints, and the table it fills is made of
lists.
"""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Spec", "Table", "loop_table"]

Spec: TypeAlias = Callable[[int, int, int, int], bool]
"""What a mask should say, written on plain ints: ``(b, h, q, kv) -> bool``."""

Table: TypeAlias = list[list[list[list[bool]]]]


def loop_table(spec: Spec, B: int, H: int, q_len: int, kv_len: int) -> Table:
    """``spec`` at every index, as lists ``[B][H][q_len][kv_len]``."""
    table = []
    for b in range(B):
        heads = []
        for h in range(H):
            rows = []
            for q in range(q_len):
                row = []
                for kv in range(kv_len):
                    row.append(bool(spec(b, h, q, kv)))
                rows.append(row)
            heads.append(rows)
        table.append(heads)
    return table
