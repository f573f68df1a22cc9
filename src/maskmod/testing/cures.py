"""What usually helps: a sentence for each kind of graph break and of recompile that Dynamo reports.

The patterns are Dynamo's own words, torch 2.11 to 2.14. What is not known gets the general advice.
"""

from __future__ import annotations

import re

__all__ = ["cure_of_break", "cure_of_guard"]

_BREAKS = (
    (r"data-dependent (branching|control flow|jump)", "compute both sides and pick: torch.where(condition, a, b)"),
    (r"\.item\(\)|\.tolist\(\)|scalar output", "keep the number in a 0-d tensor, and compute with it as it is"),
    (r"data.dependent|nonzero|dynamic (shape|output)", "give it a fixed shape: torch.where in place of selecting"),
    (r"torch\._dynamo\.graph_break", "take the graph_break() out"),
    (r"\bprint\b", "print outside the compiled function, or from what it returns"),
    (r"logg(er|ing)|warnings", "log and warn outside the compiled function"),
    (r"numpy|ndarray", "use the torch function of that name; build numpy tables outside, with torch.from_numpy"),
    (r"\.backward\(\)|autograd\.grad", "call it outside the compiled function"),
    (r"generator|yield", "return a list"),
    (r"input\(|open\(|time\.|random\.", "read it outside, and pass the value as an argument"),
    (r"extension|skip(ped)? function|builtin", "call it outside, or make it a torch.library.custom_op"),
    (r"try|except|raise", "check before the compiled function is called"),
    (r"dir\(|getattr|setattr|__dict__|inspect", "read the attribute outside, once"),
)  # fmt: skip
_GUARDS = (
    (r"size mismatch|\.size\(\)|shape", "lengths differ: compile with dynamic=True"),
    (r"dtype mismatch", "dtypes differ: convert before the call"),
    (r"stride mismatch|contiguous", "strides differ: pass x.contiguous()"),
    (r"device mismatch|device index", "devices differ: one graph each"),
    (r"requires_grad|grad_mode|GRAD_MODE", "gradients are on for one call and off for another: one graph each"),
    (r"inference_mode|INFERENCE", "inference mode is on for one call and off for another: one graph each"),
    (r"id\(|___check_obj_id|is not the same", "another object each time: keep one, and change its tensors"),
    (r"==\s*-?\d+\.?\d*\b|expected .*int", "a number differs: hold it in a tensor, or compile with dynamic=True"),
    (r"==\s*['\"]", "a string differs: one graph each"),
    (r"len\(|dict|keys|list", "a container differs: give it one length and one set of keys"),
    (r"training|_modules", "the module changed between calls: train() and eval() take one graph each"),
)  # fmt: skip


def cure_of_break(reason: str) -> str:
    """A likely cure for a graph break, by its reason.

    >>> cure_of_break("Data-dependent branching\\nDetected data-dependent branching")
    'compute both sides and pick: torch.where(condition, a, b)'
    """
    return _first(
        _BREAKS, reason, "compute in tensors what is read back into Python, or do it outside the compiled function"
    )


def cure_of_guard(guard: str) -> str:
    """A likely cure for a recompile, by the guard that failed.

    >>> cure_of_guard("n == 2 (read at model.py:3)")
    'a number differs: hold it in a tensor, or compile with dynamic=True'
    """
    return _first(_GUARDS, guard, "keep what changes between calls in tensors")


def _first(table: tuple[tuple[str, str], ...], text: str, otherwise: str) -> str:
    return next((cure for pattern, cure in table if re.search(pattern, text, re.IGNORECASE)), otherwise)
