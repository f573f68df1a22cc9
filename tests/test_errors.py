"""Errors are an interface: what was written, what was seen, what to do, in these words."""

from typing import NamedTuple

import pytest
import torch

import maskmod
from maskmod.backends import registry
from maskmod.errors import (
    BackendError,
    MaskError,
    MaskShapeError,
    MaskTypeError,
    MaskValueError,
    TruthValueError,
    UnsupportedMask,
)

TABLE = "A precomputed table becomes a mask with `lambda b, h, q_idx, kv_idx: table[q_idx, kv_idx]`."
COMPARE = "A mask says which keys are visible: compare (`x != 0`); a bias belongs in a score_mod."
ASKS = "the predicate asks a tensor for its truth value or its number: `and`, `or`, `not`, `if`, `.item()`"
OPERATORS = "Write `&`, `|`, `x ^ True`, and torch.where(condition, a, b)."


class Bad(NamedTuple):
    source: str
    error: type[MaskError]
    written: str
    seen: str
    todo: str


BAD_INPUTS = [
    Bad(
        "dense_mask(document(IDS), 1, 1, 6, 4)",
        MaskShapeError,
        "document(int64[4]) on q_len=6",
        "the table has 4 columns, 6 needed",
        "Pad it to 6, or pass q_len=4.",
    ),
    Bad(
        "dense_mask(document(IDS), 1, 1, 4, 6)",
        MaskShapeError,
        "document(int64[4]) on kv_len=6",
        "the table has 4 columns, 6 needed",
        "Pad it to 6, or pass kv_len=4.",
    ),
    Bad(
        "dense_mask(blockwise(IDS), 1, 1, 4, 6)",
        MaskShapeError,
        "blockwise(int64[4]) on kv_len=6",
        "the table has 4 columns, 6 needed",
        "Pad it to 6, or pass kv_len=4.",
    ),
    Bad(
        "dense_mask(key_padding(torch.ones(2, 4).bool()), 2, 1, 4, 6)",
        MaskShapeError,
        "key_padding(bool[2, 4]) on kv_len=6",
        "the table has 4 columns, 6 needed",
        "Pad it to 6, or pass kv_len=4.",
    ),
    Bad(
        "dense_mask(key_padding(torch.ones(2, 4).bool()), 3, 1, 4, 4)",
        MaskShapeError,
        "key_padding(bool[2, 4]) on B=3",
        "the table has 2 rows, 3 needed",
        "Pass (n,), or (B, n) with B=3.",
    ),
    Bad(
        "dense_mask(key_padding(IDS), 2, 1, 4, 4)",
        MaskShapeError,
        "key_padding(int64[4])",
        "4 rows, 2 needed",
        "Pass one value, or B=2 of them.",
    ),
    Bad(
        "dense_mask(document(IDS[None].repeat(3, 1)), 2, 1, 4, 4)",
        MaskShapeError,
        "document(int64[3, 4]) on B=2",
        "the table has 3 rows, 2 needed",
        "Pass (n,), or (B, n) with B=2.",
    ),
    Bad(
        "dense_mask(shift(causal(), q_offset=IDS), 2, 1, 4, 4)",
        MaskShapeError,
        "shift(causal(), q_offset=int64[4])",
        "4 rows, 2 needed",
        "Pass one value, or B=2 of them.",
    ),
    Bad(
        "dense_mask(shift(causal(), kv_offset=IDS), 2, 1, 4, 4)",
        MaskShapeError,
        "shift(causal(), kv_offset=int64[4])",
        "4 rows, 2 needed",
        "Pass one value, or B=2 of them.",
    ),
    Bad(
        "dense_mask(chunked(2, start=IDS), 2, 1, 4, 4)",
        MaskShapeError,
        "chunked(2, start=int64[4])",
        "4 rows, 2 needed",
        "Pass one value, or B=2 of them.",
    ),
    Bad(
        "dense_mask(prefix(IDS), 2, 1, 4, 4)",
        MaskShapeError,
        "prefix(int64[4])",
        "4 rows, 2 needed",
        "Pass one value, or B=2 of them.",
    ),
    Bad(
        "dense_mask(remap(causal(), q=IDS), 1, 1, 5, 4)",
        MaskShapeError,
        "remap(causal(), q=int64[4]) on q_len=5",
        "the table has 4 columns, 5 needed",
        "Pad it to 5, or pass q_len=4.",
    ),
    Bad(
        "dense_mask(remap(causal(), kv=IDS), 1, 1, 4, 5)",
        MaskShapeError,
        "remap(causal(), kv=int64[4]) on kv_len=5",
        "the table has 4 columns, 5 needed",
        "Pad it to 5, or pass kv_len=4.",
    ),
    Bad(
        "dense_mask(remap(causal(), valid=IDS), 1, 1, 4, 5)",
        MaskShapeError,
        "remap(causal(), valid=int64[4]) on kv_len=5",
        "the table has 4 columns, 5 needed",
        "Pad it to 5, or pass kv_len=4.",
    ),
    Bad(
        "dense_mask(per_head([causal(), full()]), 1, 3, 4, 4)",
        MaskShapeError,
        "per_head([causal(), full()]) on H=3",
        "2 masks, 3 heads",
        "Pass one mask for each of the 3 heads.",
    ),
    Bad(
        "key_padding(torch.ones(2, 4))",
        MaskTypeError,
        "key_padding(float32[2, 4])",
        "float32[2, 4] holds no validity",
        "Pass a tensor of bool or integer dtype.",
    ),
    Bad(
        "key_padding(torch.ones(4).bool())",
        MaskTypeError,
        "key_padding(bool[4])",
        "a 1-D bool could be one row of validity or B flags",
        "Pass validity as (B, n): x[None] for one row.",
    ),
    Bad(
        "key_padding(torch.ones(4))",
        MaskTypeError,
        "key_padding(float32[4])",
        "float32[4] holds no lengths",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "key_padding(torch.ones(2, 3, 4).bool())",
        MaskShapeError,
        "key_padding(bool[2, 3, 4])",
        "a 3-d tensor",
        "Pass validity of shape (n,) or (B, n).",
    ),
    Bad(
        "key_padding([1, 1, 0])",
        MaskTypeError,
        "key_padding([1, 1, 0])",
        "a list",
        "Pass a tensor of validity, shape (n,) or (B, n).",
    ),
    Bad(
        "document(IDS.float())",
        MaskTypeError,
        "document(float32[4])",
        "float32[4] holds no ids",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "document(IDS, IDS.float())",
        MaskTypeError,
        "document(int64[4], float32[4])",
        "float32[4] holds no ids",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "document(IDS[None, None])",
        MaskShapeError,
        "document(int64[1, 1, 4])",
        "a 3-d tensor",
        "Pass ids of shape (n,) or (B, n).",
    ),
    Bad(
        "document(torch.tensor(3))",
        MaskShapeError,
        "document(int64[])",
        "a 0-d tensor",
        "Pass ids of shape (n,) or (B, n).",
    ),
    Bad(
        "document([0, 0, 1])",
        MaskTypeError,
        "document([0, 0, 1])",
        "a list",
        "Pass a tensor of ids, shape (n,) or (B, n).",
    ),
    Bad(
        "document(IDS.bool())",
        MaskTypeError,
        "document(bool[4])",
        "bool[4] holds no ids",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "blockwise(IDS.float())",
        MaskTypeError,
        "blockwise(float32[4])",
        "float32[4] holds no ids",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "sliding_window(0)",
        MaskValueError,
        "sliding_window(0)",
        "0 keys",
        "Pass 1 or more.",
    ),
    Bad(
        "sliding_window(-3)",
        MaskValueError,
        "sliding_window(-3)",
        "-3 keys",
        "Pass 1 or more.",
    ),
    Bad(
        "sliding_window(2.5)",
        MaskTypeError,
        "sliding_window(2.5)",
        "a float is not a number of keys",
        "Pass an int.",
    ),
    Bad(
        "sliding_window(True)",
        MaskTypeError,
        "sliding_window(True)",
        "a bool is not a number of keys",
        "Pass an int.",
    ),
    Bad(
        "sliding_window(torch.tensor([3, 4]))",
        MaskTypeError,
        "sliding_window(int64[2])",
        "int64[2] is not one integer",
        "Pass an int or a 0-d tensor of keys.",
    ),
    Bad(
        "sliding_window(torch.tensor(3.0))",
        MaskTypeError,
        "sliding_window(float32[])",
        "float32[] is not one integer",
        "Pass an int or a 0-d tensor of keys.",
    ),
    Bad(
        "window(-1, 0)",
        MaskValueError,
        "window(-1, 0)",
        "-1 neighbours",
        "Pass 0 or more.",
    ),
    Bad(
        "window(0, -2)",
        MaskValueError,
        "window(0, -2)",
        "-2 neighbours",
        "Pass 0 or more.",
    ),
    Bad(
        "window(1.5, 0)",
        MaskTypeError,
        "window(1.5, 0)",
        "a float is not a number of neighbours",
        "Pass an int.",
    ),
    Bad(
        "chunked(0)",
        MaskValueError,
        "chunked(0)",
        "0 keys",
        "Pass 1 or more.",
    ),
    Bad(
        "chunked(4, start=0.5)",
        MaskTypeError,
        "chunked(4, start=0.5)",
        "a float",
        "Pass an int or an integer tensor.",
    ),
    Bad(
        "chunked(4, start=torch.zeros(2, 2).long())",
        MaskShapeError,
        "chunked(4, start=int64[2, 2])",
        "a 2-d tensor",
        "Pass an int, or a tensor of shape (), (1,) or (B,).",
    ),
    Bad(
        "prefix(-1)",
        MaskValueError,
        "prefix(-1)",
        "-1 keys",
        "Pass 0 or more.",
    ),
    Bad(
        "prefix(torch.ones(2))",
        MaskTypeError,
        "prefix(float32[2])",
        "float32[2] holds no integers",
        "Pass an integer tensor.",
    ),
    Bad(
        "sinks(-1)",
        MaskValueError,
        "sinks(-1)",
        "-1 keys",
        "Pass 0 or more.",
    ),
    Bad(
        "sinks(None)",
        MaskTypeError,
        "sinks(None)",
        "a NoneType is not a number of keys",
        "Pass an int.",
    ),
    Bad(
        "shift(causal(), q_offset=1.5)",
        MaskTypeError,
        "shift(causal(), q_offset=1.5)",
        "a float",
        "Pass an int or an integer tensor.",
    ),
    Bad(
        "shift(causal(), q_offset=torch.tensor(1.5))",
        MaskTypeError,
        "shift(causal(), q_offset=float32[])",
        "float32[] holds no integers",
        "Pass an integer tensor.",
    ),
    Bad(
        "shift(causal(), kv_offset=torch.zeros(2, 2).long())",
        MaskShapeError,
        "shift(causal(), kv_offset=int64[2, 2])",
        "a 2-d tensor",
        "Pass an int, or a tensor of shape (), (1,) or (B,).",
    ),
    Bad(
        "remap(causal(), q=[1, 2])",
        MaskTypeError,
        "remap(causal(), q=[1, 2])",
        "a list",
        "Pass a tensor of positions, shape (n,) or (B, n).",
    ),
    Bad(
        "remap(causal(), kv=IDS.float())",
        MaskTypeError,
        "remap(causal(), kv=float32[4])",
        "float32[4] holds no positions",
        "Pass a tensor of integer dtype.",
    ),
    Bad(
        "remap(causal(), valid=IDS.float())",
        MaskTypeError,
        "remap(causal(), valid=float32[4])",
        "float32[4] holds no validity",
        "Pass a tensor of bool or integer dtype.",
    ),
    Bad(
        "remap(causal(), valid=3)",
        MaskTypeError,
        "remap(causal(), valid=3)",
        "a int",
        "Pass a tensor of validity, shape (n,) or (B, n).",
    ),
    Bad(
        "per_head([])",
        MaskValueError,
        "per_head([])",
        "no masks",
        "Pass one mask for each head.",
    ),
    Bad(
        "per_head(causal())",
        MaskTypeError,
        "per_head(causal())",
        "a Causal",
        "Pass a list of masks, one a head.",
    ),
    Bad(
        "per_head([causal(), 3])",
        MaskTypeError,
        "3 used as a mask",
        "it has type int and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "mask_mod(3)",
        MaskTypeError,
        "3 used as a mask",
        "it has type int and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "mask_mod(torch.ones(4, 4).bool())",
        MaskTypeError,
        "bool[4, 4] used as a mask",
        "it has type Tensor and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "causal() & 3",
        MaskTypeError,
        "3 used as a mask",
        "it has type int and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "causal() & torch.ones(4, 4).bool()",
        MaskTypeError,
        "bool[4, 4] used as a mask",
        "it has type Tensor and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "causal() ^ 1",
        MaskTypeError,
        "1 used as a mask",
        "it has type int and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "mask_mod(causal)",
        MaskTypeError,
        "causal used as a mask",
        "its signature is causal() -> 'Mask', not four positional indices",
        "Write a function of (b, h, q_idx, kv_idx). If causal builds a mask, call it: causal(...).",
    ),
    Bad(
        "mask_mod(sliding_window)",
        MaskTypeError,
        "sliding_window used as a mask",
        "its signature is sliding_window(n: 'int | Tensor') -> 'Mask', not four positional indices",
        ("Write a function of (b, h, q_idx, kv_idx). If sliding_window builds a mask, call it: sliding_window(...)."),
    ),
    Bad(
        "mask_mod(lambda q_idx, kv_idx: True)",
        MaskTypeError,
        "<lambda> used as a mask",
        "its signature is <lambda>(q_idx, kv_idx), not four positional indices",
        "Write a function of (b, h, q_idx, kv_idx).",
    ),
    Bad(
        "mask_mod(lambda: True)",
        MaskTypeError,
        "<lambda> used as a mask",
        "its signature is <lambda>(), not four positional indices",
        "Write a function of (b, h, q_idx, kv_idx). If <lambda> builds a mask, call it: <lambda>(...).",
    ),
    Bad(
        "where(causal(), 1, full())",
        MaskTypeError,
        "1 used as a mask",
        "it has type int and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).float(), 1, 1, 4, 4)",
        MaskTypeError,
        "<lambda> called with one index each",
        "it returned float32[], not a bool",
        COMPARE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: q_idx - kv_idx, 1, 1, 4, 4)",
        MaskTypeError,
        "<lambda> called with one index each",
        "it returned int64[], not a bool",
        COMPARE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: IDS == q_idx, 1, 1, 4, 4)",
        MaskShapeError,
        "<lambda> called with one index each",
        "it returned bool[4], not a scalar",
        "Reduce it with .any() or .all(), or index the table with every index it has.",
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: None, 1, 1, 4, 4)",
        MaskTypeError,
        "<lambda> called with one index each",
        "it returned a NoneType, not a bool",
        COMPARE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: 0.5, 1, 1, 4, 4)",
        MaskTypeError,
        "<lambda> called with one index each",
        "it returned a float, not a bool",
        COMPARE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: 1, 1, 1, 4, 4)",
        MaskTypeError,
        "<lambda> called with one index each",
        "it returned a int, not a bool",
        COMPARE,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx and kv_idx > 1, 1, 1, 4, 4)",
        TruthValueError,
        "<lambda> at <string>:1",
        ASKS,
        OPERATORS,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx or kv_idx > 1, 1, 1, 4, 4)",
        TruthValueError,
        "<lambda> at <string>:1",
        ASKS,
        OPERATORS,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: not q_idx >= kv_idx, 1, 1, 4, 4)",
        TruthValueError,
        "<lambda> at <string>:1",
        ASKS,
        OPERATORS,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: True if q_idx >= kv_idx else False, 1, 1, 4, 4)",
        TruthValueError,
        "<lambda> at <string>:1",
        ASKS,
        OPERATORS,
    ),
    Bad(
        "dense_mask(lambda b, h, q_idx, kv_idx: q_idx.item() >= 2, 1, 1, 4, 4)",
        TruthValueError,
        "<lambda> at <string>:1",
        ASKS,
        OPERATORS,
    ),
    Bad(
        "dense_mask(causal(), 1, 1, -1, 4)",
        MaskValueError,
        "q_len=-1",
        "a size cannot be negative",
        "Pass zero or more.",
    ),
    Bad(
        "dense_mask(causal(), 1, 1, 4.0, 4)",
        MaskTypeError,
        "q_len=4.0",
        "a float is not a size",
        "Pass an int.",
    ),
    Bad(
        "dense_mask(causal(), True, 1, 4, 4)",
        MaskTypeError,
        "B=True",
        "a bool is not a size",
        "Pass an int.",
    ),
    Bad(
        'dense_mask(causal(), 1, "two", 4, 4)',
        MaskTypeError,
        "H='two'",
        "a str is not a size",
        "Pass an int.",
    ),
    Bad(
        "dense_mask(causal(), 1, 1, torch.tensor(4), 4)",
        MaskTypeError,
        "q_len=int64[]",
        "a Tensor is not a size",
        "Pass an int.",
    ),
    Bad(
        'dense_mask(causal(), 1, 1, 4, 4, method="fast")',
        MaskValueError,
        "dense_mask(method='fast')",
        "no such method",
        'Pass "auto", "vmap" or "blocks".',
    ),
    Bad(
        "additive_bias(causal(), 1, 1, 4, 4, dtype=torch.int64)",
        MaskTypeError,
        "additive_bias(dtype=torch.int64)",
        "a bias is added to scores",
        "Pass a floating dtype.",
    ),
    Bad(
        "draw(causal(), 4, 4, b=1)",
        MaskValueError,
        "draw(b=1, h=0)",
        "B=1 and H=1",
        "Show a row and a head that exist.",
    ),
    Bad(
        "draw(causal(), 4, 4, H=2, h=-1)",
        MaskValueError,
        "draw(b=0, h=-1)",
        "B=1 and H=2",
        "Show a row and a head that exist.",
    ),
    Bad(
        'lower(causal(), "cuda", 1, 1, 4, 4)',
        BackendError,
        "backend='cuda'",
        "no such backend",
        f"Registered: {sorted(registry.names())}.",
    ),
    Bad(
        'lower(causal(), "sdpa", 1, 1, 4, 4, empty_rows="zero")',
        MaskValueError,
        "lower(empty_rows='zero')",
        "no such policy for rows that see nothing",
        "Pass one of ['keep', 'uniform'].",
    ),
    Bad(
        'lower(causal(), "flex", 1, 1, 4, 4, empty_rows="uniform")',
        UnsupportedMask,
        'lower(causal(), "flex", empty_rows="uniform")',
        "a BlockMask holds booleans, and uniform weights need a bias",
        'Use backend="sdpa" or "eager", or attention(..., empty_rows="uniform").',
    ),
    Bad(
        'lower(sinks(0), "sdpa", 1, 1, 4, 4, dtype=torch.float16, empty_rows="uniform")',
        UnsupportedMask,
        'lower(mask, "sdpa", dtype=float16, empty_rows="uniform")',
        "float16's minimum, -65504, does not absorb the scores, so the weights would not be uniform",
        'Use dtype=bfloat16 or float32, or attention(..., empty_rows="uniform").',
    ),
    Bad(
        'attention(q, q, q, causal(), backend="flash9")',
        BackendError,
        "backend='flash9'",
        "no such backend",
        f"Registered: {sorted(registry.names())}.",
    ),
    Bad(
        'attention(q, q, q, causal(), empty_rows="nan")',
        MaskValueError,
        "attention(empty_rows='nan')",
        "no such policy for rows that see nothing",
        "Pass one of ['zero', 'uniform'].",
    ),
    Bad(
        'attention(q.requires_grad_(), q, q, causal(), backend="flex")',
        UnsupportedMask,
        "attention(backend='flex')",
        "flex attention has no backward on CPU",
        'Use backend="auto" or "sdpa".',
    ),
    Bad(
        'attention(q.double(), q.double(), q.double(), causal(), backend="flex")',
        UnsupportedMask,
        "attention(backend='flex')",
        "compiled flex attention has no float64 on CPU",
        'Use backend="auto" or "sdpa".',
    ),
    Bad(
        'attention(q[:, :, :0], q, q, causal(), backend="flex")',
        UnsupportedMask,
        "attention(backend='flex')",
        "flex attention takes no empty sequences",
        'Use backend="auto" or "sdpa".',
    ),
    Bad(
        "attention(q, kv2, kv2, causal())",
        MaskShapeError,
        "attention(q=[2, 4, 8, 16], k=[2, 2, 8, 16], v=[2, 2, 8, 16])",
        "4 query heads, 2 kv heads",
        "Pass enable_gqa=True, or, if heads come third, (B, length, H, D), each tensor's .transpose(1, 2).",
    ),
    Bad(
        "attention(q, q[:, :3], q[:, :3], causal(), enable_gqa=True)",
        MaskShapeError,
        "attention(q=[2, 4, 8, 16], k=[2, 3, 8, 16], v=[2, 3, 8, 16])",
        "3 kv heads do not divide 4",
        "Grouped heads come in equal groups.",
    ),
    Bad(
        "attention(q[0], q[0], q[0], causal())",
        MaskShapeError,
        "attention(q=[4, 8, 16], k=[4, 8, 16], v=[4, 8, 16])",
        "not all 4-d",
        "Pass (batch, heads, length, size).",
    ),
    Bad(
        "attention(q, q[:1], q[:1], causal())",
        MaskShapeError,
        "attention(q=[2, 4, 8, 16], k=[1, 4, 8, 16], v=[1, 4, 8, 16])",
        "batch sizes differ",
        "Expand k and v to q's batch.",
    ),
    Bad(
        "attention(q, q, q[:, :, :7], causal())",
        MaskShapeError,
        "attention(q=[2, 4, 8, 16], k=[2, 4, 8, 16], v=[2, 4, 7, 16])",
        "k and v differ in heads or length",
        "One value belongs to each key.",
    ),
    Bad(
        "attention(q, q[..., :8], q, causal())",
        MaskShapeError,
        "attention(q=[2, 4, 8, 16], k=[2, 4, 8, 8], v=[2, 4, 8, 16])",
        "q and k differ in their last size",
        "Project them to one head size.",
    ),
    Bad(
        "attention(q, q.double(), q, causal())",
        MaskTypeError,
        "attention(q, k, v)",
        "dtypes or devices differ: torch.float32 on cpu, torch.float64 on cpu, torch.float32 on cpu",
        "Pass the same for all three.",
    ),
    Bad(
        "attention(q, q, q, torch.ones(8, 8).bool())",
        MaskTypeError,
        "bool[8, 8] used as a mask",
        "it has type Tensor and is no callable (b, h, q_idx, kv_idx) -> bool",
        TABLE,
    ),
    Bad(
        "attention(q, q, q, document(IDS))",
        MaskShapeError,
        "document(int64[4]) on q_len=8",
        "the table has 4 columns, 8 needed",
        "Pad it to 8, or pass q_len=4.",
    ),
    Bad(
        'register_backend("sdpa", print)',
        BackendError,
        "register_backend('sdpa')",
        "the name is taken",
        f"Registered: {sorted(registry.names())}.",
    ),
]


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.source)
def test_bad_input(bad: Bad):
    with pytest.raises(MaskError) as caught:
        eval(bad.source, names())
    error = caught.value
    assert type(error) is bad.error
    assert (error.written, error.seen, error.todo) == (bad.written, bad.seen, bad.todo)
    assert str(error) == error.template.format(written=bad.written, seen=bad.seen, todo=bad.todo)


def names() -> dict:
    return {
        "torch": torch,
        "IDS": torch.tensor([0, 0, 1, 1]),
        "q": torch.zeros(2, 4, 8, 16),
        "kv2": torch.zeros(2, 2, 8, 16),
        **{name: getattr(maskmod, name) for name in maskmod.__all__},
    }


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.source)
def test_what_to_do_is_a_sentence(bad: Bad):
    assert bad.written
    assert bad.seen
    assert bad.todo[0].isupper()
    assert bad.todo.endswith(".")


def test_the_template_joins_three_parts():
    error = MaskValueError("sliding_window(0)", "0 keys", "Pass 1 or more.")
    assert str(error) == "sliding_window(0): 0 keys. Pass 1 or more."
    unsupported = UnsupportedMask("lower(causal())", "it cannot", "Use another.")
    assert str(unsupported) == "lower(causal()): not supported, it cannot. Use another."


def test_errors_are_also_python_errors_of_their_kind():
    assert issubclass(MaskTypeError, TypeError)
    assert issubclass(TruthValueError, TypeError)
    for error in (MaskValueError, MaskShapeError, UnsupportedMask, BackendError):
        assert issubclass(error, ValueError)


@pytest.mark.parametrize("answer", [None, 0.5, 1, torch.tensor(1), torch.tensor([True])], ids=repr)
def test_every_reader_refuses_what_is_no_bool(answer):
    def wrong(b, h, q_idx, kv_idx):
        return answer

    for method in ("auto", "vmap", "blocks"):
        with pytest.raises(MaskError, match=r"wrong called with one index each: it returned .*, not a "):
            maskmod.dense_mask(wrong, 1, 1, 4, 4, method=method)
    with pytest.raises(MaskError, match=r"wrong called with one index each: it returned .*, not a "):
        maskmod.block_mask(wrong, 1, 1, 256, 256)


def test_an_error_of_the_predicate_itself_comes_through():
    def broken(b, h, q_idx, kv_idx):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        maskmod.dense_mask(broken, 1, 1, 2, 2)
