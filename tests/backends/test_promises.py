"""What docstrings promise at the edges: dtypes, devices, dispatch modes, sizes of nothing, backends and their names."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import maskmod
from maskmod import attention, causal, dense_mask, document, key_padding, select_backend, vmap_mask
from maskmod.backends import registry
from maskmod.cli.expressions import mask_from_text
from maskmod.errors import BackendError, MaskShapeError, MaskTypeError, MaskValueError
from maskmod.packing import document_ids_from_cu_seqlens, document_ids_from_lengths, lengths_from_document_ids

IDS = torch.tensor([0, 0, 1, 1, 1])


def qkv(dtype=torch.float32):
    return torch.randn(3, 1, 2, 5, 8, dtype=dtype).unbind()


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", [causal(), causal() & document(IDS)], ids=repr)
def test_the_output_has_the_dtype_of_q_under_autocast_too(mask, dtype, backend):
    q, k, v = qkv(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v, mask, backend=backend).dtype == dtype


def test_modes_that_only_watch_are_no_trace():
    with FlopCounterMode(display=False):
        assert document_ids_from_lengths(torch.tensor([2, 3])).tolist() == IDS.tolist()

    def layer(q, k, v):
        return attention(q, k, v, causal() & document(document_ids_from_lengths(torch.tensor([2, 3]))))

    contexts = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    q, k, v = qkv()
    out = checkpoint(layer, q.requires_grad_(), k, v, use_reentrant=False, context_fn=contexts)
    torch.testing.assert_close(out, layer(q, k, v))


def test_a_mask_on_another_device_than_the_indices_says_where_both_are():
    for read in (dense_mask, vmap_mask):
        with pytest.raises(MaskTypeError, match=r'read on meta: it holds tensors on cpu. Move them: mask.to\("meta"\)'):
            read(document(IDS), 1, 1, 5, 5, device="meta")


def test_the_choice_is_the_same_for_the_sizes_of_a_call_as_in_it():
    lengths = torch.tensor([4000] + 7 * [4096])
    mask = causal() & key_padding(lengths)  # one mask for all 64 heads: 128 MiB, not 8 GiB
    choices = [select_backend(mask, 8, heads, 4096, 4096) for heads in (64, 1)]
    assert choices[0].backend == choices[1].backend
    assert "GiB" not in choices[0].rejected["sdpa"]
    per_head = mask & (lambda b, h, q_idx, kv_idx: q_idx - kv_idx < 64 * (h + 1))
    assert "would take 8.0 GiB" in select_backend(per_head, 8, 64, 4096, 4096).rejected["sdpa"]


def test_auto_is_no_name_for_a_backend():
    with pytest.raises(BackendError, match="taken"):
        maskmod.register_backend("auto", registry.get("sdpa"))


def test_attention_names_what_it_cannot_take():
    q, k, v = qkv()
    with pytest.raises(
        MaskTypeError, match=r"q, k and v are Causal, Tensor, Tensor. Pass three tensors, then the mask"
    ):
        attention(causal(), q, k, v)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MaskTypeError, match=r"tensors of torch.int32. Pass a floating dtype"):
        attention(q.int(), k.int(), v.int(), causal())
    with pytest.raises(MaskShapeError, match="0 kv heads do not divide 2"):
        attention(q, k[:, :0], v[:, :0], causal(), enable_gqa=True)


def test_packing_names_sizes_that_are_none():
    with pytest.raises(MaskShapeError, match="Begin them with 0"):
        document_ids_from_cu_seqlens(torch.tensor([], dtype=torch.int32))
    for size in (-1, 2.5, True):
        with pytest.raises(MaskValueError, match="Pass an int from 0"):
            document_ids_from_lengths(torch.tensor([2, 3]), total=size)  # pyright: ignore[reportArgumentType]
        with pytest.raises(MaskValueError, match="Pass an int from 0"):
            lengths_from_document_ids(IDS, num_documents=size)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "seen"), [("~" * 5000 + "causal()", "nested too deeply"), (f"sliding_window({10**30})", "does not fit")]
)
def test_the_command_line_reads_no_abyss(text, seen):
    with pytest.raises(MaskValueError, match=seen) as raised:
        mask_from_text(text)
    assert len(str(raised.value)) < 500
