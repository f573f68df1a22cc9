"""Entries: static sparsity, learned once, and attention to what was chosen by content."""

from __future__ import annotations

import functools

from maskmod.masks.catalog.entry import Entry

__all__ = ["SPARSE"]

_entry = functools.partial(Entry, group="sparse")
_chosen = functools.partial(Entry, group="selected")

_CHOSEN = "torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])"
_BY_QUERY = (
    "torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], "
    "[1, 0, 1, 1]])"
)

SPARSE: tuple[Entry, ...] = (
    _chosen(
        number=48,
        name="VSA",
        expression="vsa(layout, tile, sizes)",
        formula="layout[b, h, q // tile, k // tile] & k % tile < sizes[k // tile]",
        keys="the sizes of the chosen tiles",
        source="Video Sparse Attention, Zhang et al. 2025",
        elsewhere="attention-gym generate_vsa_mask_mod(indices, tile_numel, variable_block_sizes); FastVideo",
        example=f"vsa({_CHOSEN}, 2, torch.tensor([2, 2, 2, 1]))",
        size=(1, 1, 8, 8),
    ),
    _entry(
        number=56,
        name="Longformer",
        expression="longformer(w, flags)",
        formula="abs(q - k) <= w | flags[q] | flags[k]",
        keys="2 * w + 1, and the global tokens; all for those",
        source="Longformer, Beltagy et al. 2020",
        elsewhere="transformers attention_window=2 * w; attention-gym generate_global_sliding_window(w, flags)",
        example="longformer(1, torch.tensor([1, 0, 0, 0, 0, 1, 0, 0]))",
        size=(1, 1, 8, 8),
    ),
    _entry(
        number=57,
        name="BigBird",
        expression="bigbird(blocks, size, n_global=g, n_window=w, n_random=r)",
        formula="abs(q // size - k // size) <= w // 2 | q // size < g | k // size < g | drawn[h, q // size, k // size]",
        keys="at most size * (g + w + r), all in the first g blocks",
        source="BigBird, Zaheer et al. 2020",
        elsewhere="DeepSpeed BigBirdSparsityConfig(num_random_blocks, num_sliding_window_blocks, num_global_blocks)",
        example="bigbird(8, 2, n_random=1)",
        size=(1, 1, 16, 16),
    ),
    _entry(
        number=57,
        name="block layout",
        expression="block_layout(layout, size)",
        formula="layout[h, q // size, k // size]",
        keys="size times the blocks in its row",
        source="DeepSpeed sparse attention",
        elsewhere="DeepSpeed layout (heads, blocks, blocks): Variable, BSLongformer; FlashInfer's block-sparse indices",
        example=f"block_layout({_CHOSEN}, 2)",
        size=(1, 1, 8, 8),
    ),
    _entry(
        number=58,
        name="SepLLM",
        expression="sep_llm(n_sinks, separators, n)",
        formula="k <= q & (k < n_sinks | separators[k] | q - k < n)",
        keys="at most n_sinks, the separators so far, and n",
        source="SepLLM, Chen et al. 2024",
        elsewhere="SepLLM init_cache_size, separator token ids, local_size",
        example="sep_llm(1, torch.tensor([0, 0, 1, 0, 0, 0, 1, 0]), 2)",
        size=(1, 1, 8, 8),
    ),
    _entry(
        number=59,
        name="LSH",
        expression="document(buckets)",
        formula="bucket[b, q] == bucket[b, k]",
        keys="those of its bucket",
        source="Reformer, Kitaev et al. 2020; Routing Transformer",
        elsewhere="sort tokens by bucket, or no block is empty",
        example="document(torch.tensor([0, 2, 1, 0, 1, 2, 2, 0]))",
        size=(1, 1, 8, 8),
    ),
    _entry(
        number=60,
        name="permutation language model",
        expression="remap(causal(), q=rank, kv=rank)",
        formula="rank[k] <= rank[q]",
        keys="rank[q] + 1",
        source="XLNet, Yang et al. 2019",
        elsewhere="XLNet perm_mask, inverted",
        example="remap(causal(), q=torch.tensor([3, 0, 5, 1, 4, 2]), kv=torch.tensor([3, 0, 5, 1, 4, 2]))",
        size=(1, 1, 6, 6),
    ),
    _entry(
        number=61,
        name="HSTU",
        expression="hstu(lengths, contextual=c, targets=t, max_attn_len=w, min_full_attn_seq_len=f)",
        formula="q == k | (place[k] < place[q] & (place[q] - place[k] <= w | place[q] >= last - f)) | place[q] == 0, "
        "where place[i] = clamp(i - c + 1, 0, last)",
        keys="at most w + 1; all for the user and the last f",
        source="HSTU, Zhai et al. 2024",
        elsewhere="generative-recommenders: the same names",
        example="hstu(12, contextual=2, targets=3, max_attn_len=3, min_full_attn_seq_len=2)",
        size=(1, 1, 12, 12),
    ),
    _chosen(
        number=70,
        name="NSA, selected",
        expression="nsa_selected(layout, size)",
        formula="k <= q & (q // size == k // size | layout[b, h, q, k // size])",
        keys="at most size * (chosen + 1)",
        source="Native Sparse Attention, Yuan et al. 2025",
        elsewhere="block indices from a top-k: layout_from_indices(indices, blocks)",
        example=f"nsa_selected({_BY_QUERY}, 2)",
        size=(1, 1, 8, 8),
    ),
    _chosen(
        number=71,
        name="NSA, compressed",
        expression="nsa_compressed(size, stride)",
        formula="k * stride + size - 1 < q",
        keys="about q // stride",
        source="Native Sparse Attention, Yuan et al. 2025",
        elsewhere="lucidrains native-sparse-attention: stride == size",
        example="nsa_compressed(3)",
        size=(1, 1, 9, 3),
    ),
    _chosen(
        number=72,
        name="NSA, window",
        expression="sliding_window(n)",
        formula="0 <= q - k < n",
        keys="n",
        source="Native Sparse Attention, Yuan et al. 2025",
        elsewhere="the third branch, an attention of its own",
        example="sliding_window(4)",
        size=(1, 1, 8, 8),
    ),
    _chosen(
        number=73,
        name="MoBA",
        expression="moba(layout, size)",
        formula="k <= q & (q // size == k // size | layout[b, h, q, k // size])",
        keys="at most size * (chosen + 1)",
        source="MoBA, Lu et al. 2025",
        elsewhere="moba_chunk_size=size, moba_topk: the query's own chunk is always among them",
        example=f"moba({_BY_QUERY}, 2)",
        size=(1, 1, 8, 8),
    ),
    _chosen(
        number=74,
        name="DSA",
        expression="dsa(layout)",
        formula="k <= q & layout[b, 0, q, k]",
        keys="at most top-k",
        source="DeepSeek V3.2",
        elsewhere="transformers modular_deepseek_v32, from the indexer's top-k indices",
        example="dsa(torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0], "
        "[0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]))",
        size=(1, 1, 6, 6),
    ),
    _chosen(
        number=75,
        name="MiniMax-M3",
        expression="causal() & (block_layout(layout, (1, size)) | prefix(n_init) | "
        "coarse(sliding_window(n_local), size))",
        formula="k <= q & (layout[b, h, q, k // size] | k < n_init | q // size - k // size < n_local)",
        keys="at most size * (chosen + n_local) + n_init",
        source="MiniMax-M3, as vLLM runs it",
        elsewhere="top-k blocks, first blocks and local blocks",
        example=f"causal() & (block_layout({_BY_QUERY}, (1, 2)) | prefix(1) | coarse(sliding_window(2), 2))",
        size=(1, 1, 8, 8),
    ),
    _chosen(
        number=76,
        name="KV eviction",
        expression="causal() & key_flags(keep)",
        formula="k <= q & keep[b, h, k]",
        keys="those kept, up to itself",
        source="H2O, SnapKV",
        elsewhere="caches that drop keys for each head",
        example="causal() & key_flags(torch.tensor([[[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 1]]]))",
        size=(1, 2, 6, 6),
        head=1,
    ),
)
