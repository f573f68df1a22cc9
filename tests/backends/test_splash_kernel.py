"""jax's own splash kernel, in interpret mode on a CPU, on our tables: forward and gradients against the reference.

Runs where jax is installed (``pip install 'maskmod[splash]'``) and is skipped elsewhere.
"""

from importlib import import_module

import numpy as np
import pytest
import torch

from maskmod import attention, causal, document, full, lower, per_head, prefix, sinks, sliding_window

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.filterwarnings("ignore")  # jax announces deprecations of its own

IDS = torch.arange(512) // 100
MASKS = [
    (full(), 1),
    (causal(), 1),
    (causal() & (sliding_window(130) | sinks(3)), 1),
    (causal() & document(IDS), 1),
    (causal() | prefix(140), 2),
    (per_head([causal(), causal() & sliding_window(70)]), 2),
    (lambda b, h, q_idx, kv_idx: (kv_idx <= q_idx) & ((q_idx + kv_idx) % 3 != 1), 1),
]


def run_kernel(args, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
    room = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_"
    splash, MaskInfo = import_module(f"{room}kernel"), import_module(f"{room}mask_info").MaskInfo
    infos = {
        name: MaskInfo(**{field: None if x is None else jax.numpy.asarray(x) for field, x in tables.items()})
        for name, tables in args.kwargs().items()
    }
    block = args.block_size
    sizes = splash.BlockSizes(
        block_q=block[0],
        block_kv=block[1],
        block_kv_compute=block[1],
        block_q_dkv=block[0],
        block_kv_dkv=block[1],
        block_kv_dkv_compute=block[1],
        block_q_dq=block[0],
        block_kv_dq=block[1],
    )
    kernel = splash.SplashAttentionKernel(
        infos["fwd_mask_info"],
        infos["fwd_mask_info"],
        infos["dkv_mask_info"],
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=None,
        interpret=True,
    )

    def loss(q, k, v):
        out = kernel(q, k, v)
        return (out * out).sum(), out

    arrays = [jax.numpy.asarray(x[0].numpy()) for x in (q, k, v)]
    gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return [torch.from_numpy(np.array(x))[None] for x in (out, *gradients)]


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize(("mask", "H"), MASKS, ids=str)
def test_the_kernel_computes_what_the_mask_says(mask, H: int, shrink: bool):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 512, 128) / 4 for _ in range(3))
    args = lower(mask, "splash", 1, H, 512, 512, block_size=(128, 128), shrink=shrink)
    found = run_kernel(args, q, k, v)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = attention(q, k, v, mask, backend="eager", scale=1.0)
    wanted = [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y.detach(), atol=2e-4, rtol=2e-3)
