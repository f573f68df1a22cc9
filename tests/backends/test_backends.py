"""Every backend against attention written out in float64."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from cases import BY_NAME, CASES, Case
from maskmod import attention, causal, document, lower, shift, sinks, sliding_window
from maskmod.backends.eager import eager_attention
from oracle import loop_table
from random_masks import Expression, Size, masks
from reference import plain_attention, tolerance

B, HEADS, KV_HEADS, Q_LEN, KV_LEN, D, DV = 2, 4, 2, 17, 23, 16, 8

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dense_backend = pytest.mark.parametrize("backend", ["eager", "sdpa", "spans"])


def inputs(q_len: int = Q_LEN, kv_len: int = KV_LEN, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v in float64, with grouped heads and values of another size."""
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, HEADS, q_len, D, generator=draw, dtype=torch.float64),
        torch.randn(B, KV_HEADS, kv_len, D, generator=draw, dtype=torch.float64),
        torch.randn(B, KV_HEADS, kv_len, DV, generator=draw, dtype=torch.float64),
    )


def table(case: Case, q_len: int = Q_LEN, kv_len: int = KV_LEN) -> Tensor:
    return torch.tensor(loop_table(case.spec, B, HEADS, q_len, kv_len))


def check(out: Tensor, qkv: tuple[Tensor, ...], visible: Tensor, **options) -> None:
    """``out`` against float64, with the error that its own precision makes in the plain computation."""
    q, k, v = qkv
    exact = plain_attention(q, k, v, visible, **options)
    low = torch.float32 if out.dtype == torch.float64 else out.dtype
    allowed = tolerance(exact, plain_attention(q.to(low), k.to(low), v.to(low), visible, **options))
    if out.dtype == torch.float64:
        allowed *= torch.finfo(torch.float64).eps / torch.finfo(low).eps
    assert not out.isnan().any()
    assert (out.double() - exact).abs().max().item() <= allowed


@every_case
@every_dense_backend
def test_dense_backends_in_float64(case: Case, backend: str):
    qkv = inputs()
    mask = case.build(B, HEADS, Q_LEN, KV_LEN)
    out = attention(*qkv, mask, backend=backend, enable_gqa=True)
    assert out.shape == (B, HEADS, Q_LEN, DV)
    assert out.dtype == torch.float64
    check(out, qkv, table(case))


@pytest.mark.parametrize("name", ["causal", "image_spans", "per_head", "key_lengths", "nothing"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@every_dense_backend
def test_dense_backends_in_lower_precision(name: str, dtype: torch.dtype, backend: str):
    case = BY_NAME[name]
    q, k, v = (part.to(dtype) for part in inputs())
    out = attention(q, k, v, case.build(B, HEADS, Q_LEN, KV_LEN), backend=backend, enable_gqa=True)
    assert out.dtype == dtype
    check(out, (q.double(), k.double(), v.double()), table(case))


@given(masks(Size(B, HEADS, 6, 7), depth=3))
def test_random_masks(drawn: Expression):
    qkv = inputs(6, 7)
    visible = torch.tensor(loop_table(drawn.spec, *drawn.size))
    for backend in ("eager", "sdpa", "spans", "auto"):
        for empty_rows in ("zero", "uniform"):
            out = attention(*qkv, drawn.build(), backend=backend, enable_gqa=True, empty_rows=empty_rows)
            check(out, qkv, visible, empty_rows=empty_rows)


@every_dense_backend
@pytest.mark.parametrize("scale", [1.0, 0.25, 3])
def test_scale(backend: str, scale: float):
    qkv = inputs()
    out = attention(*qkv, causal(), backend=backend, enable_gqa=True, scale=scale)
    check(out, qkv, table(BY_NAME["causal"]), scale=scale)


@pytest.mark.parametrize("lengths", [(1, 23), (17, 1), (1, 1), (23, 17)], ids=str)
@pytest.mark.parametrize("name", ["causal", "full", "sliding_window", "shift"])
@every_dense_backend
def test_other_lengths(lengths: tuple[int, int], name: str, backend: str):
    case, qkv = BY_NAME[name], inputs(*lengths)
    check(attention(*qkv, case.build(B, HEADS, *lengths), backend=backend, enable_gqa=True), qkv, table(case, *lengths))


# ------------------------------------------------------------------------------------------------------ empty rows


@pytest.mark.parametrize("name", ["nothing", "sinks_and_window", "key_lengths", "blockwise_rows", "shift_keys"])
@pytest.mark.parametrize("empty_rows", ["zero", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every_dense_backend
def test_rows_that_see_nothing(name: str, empty_rows: str, dtype: torch.dtype, backend: str):
    case = BY_NAME[name]
    hidden_first = case.build(B, HEADS, Q_LEN, KV_LEN) & (lambda b, h, q_idx, kv_idx: q_idx > 3)
    visible = table(case) & (torch.arange(Q_LEN) > 3)[:, None]
    q, k, v = (part.to(dtype) for part in inputs())
    out = attention(q, k, v, hidden_first, backend=backend, enable_gqa=True, empty_rows=empty_rows)
    check(out, (q.double(), k.double(), v.double()), visible, empty_rows=empty_rows)
    if empty_rows == "zero":
        assert (out[:, :, :4] == 0).all()


@pytest.mark.parametrize("empty_rows", ["zero", "uniform"])
@every_dense_backend
def test_sequences_without_tokens(empty_rows: str, backend: str):
    q, k, v = inputs()
    no_keys = attention(q, k[:, :, :0], v[:, :, :0], causal(), backend=backend, enable_gqa=True, empty_rows=empty_rows)
    assert no_keys.shape == (B, HEADS, Q_LEN, DV)
    assert (no_keys == 0).all()
    no_queries = attention(q[:, :, :0], k, v, causal(), backend=backend, enable_gqa=True, empty_rows=empty_rows)
    assert no_queries.shape == (B, HEADS, 0, DV)


@pytest.mark.parametrize("empty_rows", ["zero", "uniform"])
@pytest.mark.parametrize("name", ["causal", "nothing", "key_lengths", "blockwise", "per_head"])
@every_dense_backend
def test_gradients(name: str, empty_rows: str, backend: str):
    case = BY_NAME[name]
    visible = table(case) & (torch.arange(Q_LEN) > 2)[:, None]
    mask = case.build(B, HEADS, Q_LEN, KV_LEN) & (lambda b, h, q_idx, kv_idx: q_idx > 2)
    weights = torch.randn(B, HEADS, Q_LEN, DV, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(run, dtype: torch.dtype) -> list[Tensor]:
        parts = [part.to(dtype).requires_grad_() for part in inputs()]
        return list(torch.autograd.grad((run(*parts) * weights.to(dtype)).sum(), parts))

    def masked_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # No NaN is made on the way: a row that sees nothing is opened before the softmax and dropped after it.
        empty = ~visible.any(-1, keepdim=True)
        out = plain_attention(q, k, v, visible | empty)
        mean = v.mean(2, keepdim=True).repeat_interleave(HEADS // KV_HEADS, 1)
        return torch.where(empty, mean if empty_rows == "uniform" else torch.zeros_like(mean), out)

    seen = gradients(
        lambda q, k, v: attention(q, k, v, mask, backend=backend, enable_gqa=True, empty_rows=empty_rows), torch.float32
    )
    for ours, exact, low in zip(
        seen, gradients(masked_softmax, torch.float64), gradients(masked_softmax, torch.float32), strict=True
    ):
        assert not ours.isnan().any()
        assert (ours.double() - exact).abs().max().item() <= tolerance(exact, low)


# ----------------------------------------------------------------------------------------------------- lowered alone


@every_case
def test_lowered_arguments_splat_into_the_backends(case: Case):
    q, k, v = inputs()
    size = (B, HEADS, Q_LEN, KV_LEN)
    mask = case.build(*size)
    visible = table(case)
    has_keys = visible.any(-1, keepdim=True)

    args = lower(mask, "sdpa", *size)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **args.kwargs(), enable_gqa=True)
    exact = plain_attention(q, k, v, visible)
    torch.testing.assert_close(torch.where(has_keys, out, 0.0), exact)

    args = lower(mask, "eager", *size, dtype=torch.float64)
    out = eager_attention(q, k, v, **args.kwargs(), enable_gqa=True)
    torch.testing.assert_close(out, plain_attention(q, k, v, visible, empty_rows="uniform"))
    assert args.why


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["nothing", "key_lengths", "causal"])
def test_lowering_rows_that_see_nothing_to_uniform_weights(name: str, dtype: torch.dtype):
    q, k, v = (part.to(dtype) for part in inputs())
    mask = shift(BY_NAME[name].build(B, HEADS, Q_LEN, KV_LEN), q_offset=-3)
    visible = torch.tensor(loop_table(lambda b, h, q, kv: BY_NAME[name].spec(b, h, q - 3, kv), B, HEADS, Q_LEN, KV_LEN))
    size = (B, HEADS, Q_LEN, KV_LEN)
    qkv = q.double(), k.double(), v.double()
    args = lower(mask, "sdpa", *size, dtype=dtype, empty_rows="uniform")
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **args.kwargs(), enable_gqa=True)
    check(out, qkv, visible, empty_rows="uniform")
    args = lower(mask, "eager", *size, dtype=dtype, empty_rows="uniform")
    check(eager_attention(q, k, v, **args.kwargs(), enable_gqa=True), qkv, visible, empty_rows="uniform")


@pytest.mark.parametrize(
    ("name", "flag", "has_mask"),
    [
        ("full", False, False),
        ("window_open", False, False),
        ("causal", True, False),
        ("window_right", True, False),
        ("sliding_window", False, True),
        ("shift", False, True),
        ("document", False, True),
    ],
)
def test_sdpa_takes_the_flag_where_it_is_proven(name: str, flag: bool, has_mask: bool):
    args = lower(BY_NAME[name].build(1, 1, 9, 9), "sdpa", 1, 1, 9, 9)
    assert args.kwargs()["is_causal"] is flag
    assert (args.kwargs()["attn_mask"] is not None) is has_mask
    assert ("prove" in args.why) or has_mask


# --------------------------------------------------------------------------------------------------------------- flex


@pytest.mark.parametrize("name", ["image_spans", "per_head", "nothing"])
def test_flex_agrees(name: str):
    case, n = BY_NAME[name], 150  # a ragged tail of blocks
    q, k, v = (part.float() for part in inputs(n, n))
    mask = case.build(B, HEADS, n, n)
    for empty_rows in ("zero", "uniform"):
        out = attention(q, k, v, mask, backend="flex", enable_gqa=True, empty_rows=empty_rows)
        check(out, (q.double(), k.double(), v.double()), table(case, n, n), empty_rows=empty_rows)


def test_flex_compiles_once_for_masks_of_one_structure():
    from maskmod.testing import watch_graphs

    q, k, v = (part.float() for part in inputs(20, 20))
    with watch_graphs() as report:
        for i in range(3):
            ids = (torch.arange(20) + i) // 7
            attention(q, k, v, causal() & document(ids), backend="flex", enable_gqa=True)
    assert report.graphs == 1, report


def test_flex_compiles_once_for_a_lambda_in_a_loop():
    from maskmod.testing import watch_graphs

    q, k, v = (part.float() for part in inputs(20, 20))
    with watch_graphs() as report:
        for width in (torch.tensor(3), torch.tensor(7), torch.tensor(2)):
            mask = causal() & (lambda b, h, q_idx, kv_idx, width=width: q_idx - kv_idx < width)
            out = attention(q, k, v, mask, backend="flex", enable_gqa=True)
            same = attention(q, k, v, causal() & sliding_window(width), backend="sdpa", enable_gqa=True)
            torch.testing.assert_close(out, same)
    assert report.graphs == 1, report


def test_rows_that_see_nothing_are_kept_by_lower():
    args = lower(sinks(0), "sdpa", 1, 1, 2, 3)
    assert args.kwargs()["attn_mask"].tolist() == [[[[False] * 3] * 2]]


# ---------------------------------------------------------------------------------------------------------------- GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["causal", "image_spans", "per_head", "nothing"])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex", "auto"])
def test_backends_on_a_gpu(name: str, backend: str):
    case, n = BY_NAME[name], 300
    q, k, v = (part.to("cuda", torch.bfloat16) for part in inputs(n, n))
    mask = case.build(B, HEADS, n, n).to("cuda")
    out = attention(q, k, v, mask, backend=backend, enable_gqa=True)
    assert out.device.type == "cuda"
    check(out.cpu(), (q.cpu().double(), k.cpu().double(), v.cpu().double()), table(case, n, n))


@pytest.mark.gpu
def test_gradients_on_a_gpu_through_flex():
    n = 200
    q, k, v = (part.to("cuda", torch.float32).requires_grad_() for part in inputs(n, n))
    mask = BY_NAME["sinks_and_window"].build(B, HEADS, n, n) & (lambda b, h, q_idx, kv_idx: q_idx > 9)
    for backend in ("flex", "sdpa"):
        grads = torch.autograd.grad(attention(q, k, v, mask, backend=backend, enable_gqa=True).sum(), (q, k, v))
        assert not any(grad.isnan().any() for grad in grads)
