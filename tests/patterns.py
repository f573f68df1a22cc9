"""Every mask pattern of the survey twice: as a predicate on tensors, and as a rule on Python ints.

The rules are written from the definition of each pattern with lists, sets and ranges; they share no code with the
predicates, nor with `maskmod`. Numbers in names are those of the survey.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import NamedTuple

import torch

N = 192
BLOCK = 16


class Pattern(NamedTuple):
    name: str
    mask: Callable
    rule: Callable[[int, int, int, int], bool]
    q_len: int = N
    kv_len: int = N
    B: int = 1
    H: int = 1


PATTERNS: list[Pattern] = []


def _add(name: str, mask: Callable, rule: Callable, q_len: int = N, kv_len: int = N, B: int = 1, H: int = 1) -> None:
    PATTERNS.append(Pattern(name, mask, rule, q_len, kv_len, B, H))


def _table(values) -> torch.Tensor:
    return torch.tensor(values)


_rng = random.Random(0)


# ----------------------------------------------------------------------------------------------------- positional

_add("1 full", lambda b, h, q, k: True, lambda b, h, q, k: True)
_add("2 causal", lambda b, h, q, k: q >= k, lambda b, h, q, k: k in range(q + 1))
_add(
    "3 causal bottom-right",
    lambda b, h, q, k: k <= q + 64,
    lambda b, h, q, k: N + 64 - k >= N - q,
    kv_len=N + 64,
)
_offset = torch.tensor(37)
_add("3 causal, offset in a tensor", lambda b, h, q, k: q + _offset >= k, lambda b, h, q, k: k - q < 38)
_add("4 strict causal", lambda b, h, q, k: q > k, lambda b, h, q, k: k in range(q))
_add("4 anti-causal", lambda b, h, q, k: q <= k, lambda b, h, q, k: q in range(k + 1))
_add(
    "5 bi-causal band", lambda b, h, q, k: (k - q >= -20) & (k - q <= 9), lambda b, h, q, k: k in range(q - 20, q + 10)
)
_add("6 sliding causal", lambda b, h, q, k: (q >= k) & (k > q - 40), lambda b, h, q, k: k in range(q - 39, q + 1))
_add(
    "7 two-sided local",
    lambda b, h, q, k: (q - 33 <= k) & (k <= q + 12),
    lambda b, h, q, k: k in range(q - 33, q + 13),
)
_add("8 symmetric", lambda b, h, q, k: abs(q - k) <= 30, lambda b, h, q, k: k in range(q - 30, q + 31))
_add(
    "9 dilated window",
    lambda b, h, q, k: ((q - k).abs() <= 60) & ((q - k).abs() % 3 == 0),
    lambda b, h, q, k: k in range(q - 60, q + 61, 3),
)
_add(
    "10 strided",
    lambda b, h, q, k: (q >= k) & ((q - k) % 8 == 0),
    lambda b, h, q, k: k in range(q, -1, -8),
)
_add(
    "11 fixed",
    lambda b, h, q, k: (q >= k) & ((q // 32 == k // 32) | (k % 32 >= 28)),
    lambda b, h, q, k: k <= q and (k >= q - q % 32 or k % 32 in (28, 29, 30, 31)),
)
_add(
    "12 chunked causal",
    lambda b, h, q, k: (q // 48 == k // 48) & (q >= k),
    lambda b, h, q, k: q - q % 48 <= k <= q,
)
_left = _table([0, 21])
_add(
    "12 chunked causal, left padding",
    lambda b, h, q, k: ((k - _left[b]) // 48 == (q - _left[b]) // 48) & (q >= k),
    lambda b, h, q, k: k <= q and (k - (0, 21)[b]) // 48 == (q - (0, 21)[b]) // 48,
    B=2,
)
_add("13 fixed blocks", lambda b, h, q, k: q // 24 == k // 24, lambda b, h, q, k: q - q % 24 <= k < q - q % 24 + 24)
_add("14 block-causal", lambda b, h, q, k: k // 24 <= q // 24, lambda b, h, q, k: k < q - q % 24 + 24)
_add(
    "15 streaming chunks",
    lambda b, h, q, k: (k < (q // 20 + 1) * 20 + 5) & (k >= (q // 20 - 2) * 20),
    lambda b, h, q, k: k in range(q - q % 20 - 40, q - q % 20 + 25),
)
_add(
    "16 sinks and window",
    lambda b, h, q, k: (q >= k) & ((k < 4) | (q - k < 30)),
    lambda b, h, q, k: k in (*range(min(4, q + 1)), *range(max(q - 29, 0), q + 1)),
)
_add("17 prefix", lambda b, h, q, k: (k < 50) | (q >= k), lambda b, h, q, k: k <= max(q, 49))
_add(
    "17 both in prefix",
    lambda b, h, q, k: ((q < 50) & (k < 50)) | (q >= k),
    lambda b, h, q, k: k <= q or max(q, k) < 50,
)
_prefixes = _table([3, 77])
_add(
    "17 prefix of each row",
    lambda b, h, q, k: (k < _prefixes[b]) | (q >= k),
    lambda b, h, q, k: k < (3, 77)[b] or k <= q,
    B=2,
)
_vertical = [k % 37 == 0 for k in range(N)]
_vertical_table = _table(_vertical)
_add(
    "18 vertical and window",
    lambda b, h, q, k: (q >= k) & (_vertical_table[k] | (q - k < 20)),
    lambda b, h, q, k: k <= q and (_vertical[k] or q - k in range(20)),
)
_slash = [d < 9 or d % 64 == 0 for d in range(N)]
_slash_table = _table(_slash)
_add(
    "18 vertical-slash",
    lambda b, h, q, k: (q >= k) & (_vertical_table[k] | _slash_table[q - k]),
    lambda b, h, q, k: k <= q and (_vertical[k] or _slash[q - k]),
)
_add("19 band-part", lambda b, h, q, k: (k - q >= -15) & (k - q <= 3), lambda b, h, q, k: q - 15 <= k <= q + 3)
_add("20 mini-causal", lambda b, h, q, k: q % 24 >= k % 24, lambda b, h, q, k: k - k // 24 * 24 <= q - q // 24 * 24)
_add(
    "21 hashed",
    lambda b, h, q, k: (q * 7919 + k * 104729) % 1000 < 300,
    lambda b, h, q, k: divmod(7919 * q + 104729 * k, 1000)[1] < 300,
)
_windows = [_rng.randint(1, 60) for _ in range(N)]
_windows_table = _table(_windows)
_add(
    "22 window of each query",
    lambda b, h, q, k: (k <= q) & (q - k < _windows_table[q]),
    lambda b, h, q, k: k in range(q - _windows[q] + 1, q + 1),
)

# ------------------------------------------------------------------------------------ segments, packing, padding

_lengths = [100, N]
_valid = [[k < n for k in range(N)] for n in _lengths]
_valid_table, _lengths_table = _table(_valid), _table(_lengths)
_add("23 key padding", lambda b, h, q, k: _valid_table[b, k], lambda b, h, q, k: k in range((100, N)[b]), B=2)
_add(
    "24 lengths",
    lambda b, h, q, k: (k < _lengths_table[b]) & (q < _lengths_table[b]),
    lambda b, h, q, k: max(q, k) < (100, N)[b],
    B=2,
)
_documents = [40, 9, 61, 30, 52]
_ids = [d for d, n in enumerate(_documents) for _ in range(n)]
_begin = [sum(_documents[:d]) for d in range(6)]
_id_table, _begin_table = _table(_ids), _table(_begin)


def _same(q: int, k: int) -> bool:
    return any(lo <= q < hi and lo <= k < hi for lo, hi in itertools.pairwise(_begin))


_add("25 documents", lambda b, h, q, k: _id_table[q] == _id_table[k], lambda b, h, q, k: _same(q, k))
_batched_ids = _table([_ids, [0] * N])
_add(
    "25 documents of each row",
    lambda b, h, q, k: _batched_ids[b, q] == _batched_ids[b, k],
    lambda b, h, q, k: b == 1 or _same(q, k),
    B=2,
)
_add(
    "26 packed causal",
    lambda b, h, q, k: (_id_table[q] == _id_table[k]) & (q >= k),
    lambda b, h, q, k: k <= q and _same(q, k),
)
_add(
    "26 packed causal by starts",
    lambda b, h, q, k: (k >= _begin_table[_id_table[q]]) & (k <= q),
    lambda b, h, q, k: k <= q and _same(q, k),
)


def _inner(name: str, inner: Callable, rule: Callable[[int, int], bool]) -> None:
    _add(
        f"27 documents over {name}",
        lambda b, h, q, k: (
            (_id_table[q] == _id_table[k]) & inner(q - _begin_table[_id_table[q]], k - _begin_table[_id_table[k]])
        ),
        lambda b, h, q, k: _same(q, k) and rule(q - _begin[_ids[q]], k - _begin[_ids[k]]),
    )


_inner("causal", lambda q, k: q >= k, lambda q, k: k <= q)
_inner("sliding", lambda q, k: (q >= k) & (q - k < 11), lambda q, k: k in range(q - 10, q + 1))
_inner("prefix", lambda q, k: (q >= k) | (k < 8), lambda q, k: k <= max(q, 7))
_inner("symmetric", lambda q, k: abs(q - k) < 7, lambda q, k: q - 7 < k < q + 7)
_q_lengths, _kv_lengths = [20, 33, 27, 16], [50, 60, 27, 55]
_q_seg = [s for s, n in enumerate(_q_lengths) for _ in range(n)]
_kv_seg = [s for s, n in enumerate(_kv_lengths) for _ in range(n)]
_q_off = [i for n in _q_lengths for i in range(n)]
_kv_off = [i for n in _kv_lengths for i in range(n)]
_tq, _tk, _oq, _ok = _table(_q_seg), _table(_kv_seg), _table(_q_off), _table(_kv_off)
_extra = _table([k - q for q, k in zip(_q_lengths, _kv_lengths, strict=True)])
_add(
    "28 block-diagonal, bottom-right",
    lambda b, h, q, k: (_tq[q] == _tk[k]) & (_ok[k] <= _oq[q] + _extra[_tq[q]]),
    lambda b, h, q, k: (
        _q_seg[q] == _kv_seg[k] and _kv_lengths[_kv_seg[k]] - _kv_off[k] >= _q_lengths[_q_seg[q]] - _q_off[q]
    ),
    96,
    192,
)
_gap_start, _gap_length = [0, 48, 96, 144], [30, 48, 17, 40]
_gap_q = [s for s in range(4) for _ in range(24)]
_gs, _gl, _gq = _table(_gap_start), _table(_gap_length), _table(_gap_q)
_add(
    "29 gappy keys",
    lambda b, h, q, k: (k >= _gs[_gq[q]]) & (k < _gs[_gq[q]] + _gl[_gq[q]]),
    lambda b, h, q, k: k in range(_gap_start[q // 24], _gap_start[q // 24] + _gap_length[q // 24]),
    96,
)
_pages = _rng.sample(range(12), 12)
_physical = [_pages[s // 16] * 16 + s % 16 for s in range(N)]
_physical_table = _table(_physical)
_add(
    "30 paged",
    lambda b, h, q, k: (_physical_table[k] <= q) & (_physical_table[k] < 150),
    lambda b, h, q, k: _physical[k] <= min(q, 149),
)
_positions = [i for n in _documents for i in range(n)]
_position_table = _table(_positions)
_cumsum_ids = (_position_table == 0).cumsum(0)
_add(
    "31 documents by positions",
    lambda b, h, q, k: (_cumsum_ids[q] == _cumsum_ids[k]) & (_position_table[q] >= _position_table[k]),
    lambda b, h, q, k: k <= q and _same(q, k),
)
_add(
    "32 separate ids",
    lambda b, h, q, k: _tq[q] == _tk[k],
    lambda b, h, q, k: sum(_kv_lengths[: _q_seg[q]]) <= k < sum(_kv_lengths[: _q_seg[q] + 1]),
    96,
    192,
)
_groups = [(-1 if (i // 20) % 2 else i // 40) for i in range(N)]
_group_table = _table(_groups)
_add(
    "33 groups with a sentinel",
    lambda b, h, q, k: (_group_table[q] == _group_table[k]) & (_group_table[q] >= 0),
    lambda b, h, q, k: q // 40 == k // 40 and q % 40 < 20 and k % 40 < 20,
)
_add(
    "34 causal blockwise",
    lambda b, h, q, k: ((_id_table[q] == _id_table[k]) | (_id_table[q] == 4)) & (q >= k),
    lambda b, h, q, k: k <= q and (q >= _begin[4] or _same(q, k)),
)
_prefix_of = [0, 0, 0, 3, 3]
_prefix_table = _table(_prefix_of)


def _shared_prefix(b, h, q, k):
    document = _id_table[q]
    prefix = _prefix_table[document]
    own = (k >= _begin_table[document]) & (q >= k)
    return own | ((document != prefix) & (k >= _begin_table[prefix]) & (k < _begin_table[prefix + 1]))


_add(
    "35 shared prefix",
    _shared_prefix,
    lambda b, h, q, k: (k <= q and _same(q, k)) or (_ids[q] != _prefix_of[_ids[q]] == _ids[k]),
)
_item = [0] * 60 + [j for n in (30, 42, 28, 32) for j in range(1, n + 1)]
_item_table = _table(_item)
_add(
    "36 multi-item scoring",
    lambda b, h, q, k: (k <= q) & ((q < 60) | (k < 60) | (k > q - _item_table[q])),
    lambda b, h, q, k: k <= q and (k < 60 or q < 60 or q - k < _item[q]),
)
_evicted = [min(N, k + _rng.randint(1, 90)) for k in range(N)]
_evicted_table = _table(_evicted)
_add(
    "37 eviction",
    lambda b, h, q, k: (q >= k) & (q < _evicted_table[k]),
    lambda b, h, q, k: q in range(k, _evicted[k]),
)
_lts = [min(N, k + 50 + k % 7) for k in range(N)]
_lte = [min(N, k + 90) for k in range(N)]
_uts = [max(0, k - 80) for k in range(N)]
_ute = [max(0, k - 30 - k % 5) for k in range(N)]
_flash = [_table(x) for x in (_lts, _lte, _uts, _ute)]
_add(
    "38 FlashMask",
    lambda b, h, q, k: ~(((_flash[0][k] <= q) & (q < _flash[1][k])) | ((_flash[2][k] <= q) & (q < _flash[3][k]))),
    lambda b, h, q, k: q not in range(_lts[k], _lte[k]) and q not in range(_uts[k], _ute[k]),
)
_f0 = [q // 3 for q in range(N)]
_f1 = [q // 3 + 20 for q in range(N)]
_f2 = [q // 3 + 50 for q in range(N)]
_rows = [_table(x) for x in (_f0, _f1, _f2)]
_add(
    "39 row intervals",
    lambda b, h, q, k: (k < _rows[0][q]) | ((_rows[1][q] <= k) & (k < _rows[2][q])),
    lambda b, h, q, k: k in range(q // 3) or k in range(q // 3 + 20, q // 3 + 50),
)
_add(
    "40 trapezoids",
    lambda b, h, q, k: ((q < 90) & (k < 70) & (k <= q)) | ((q >= 90) & (k >= 100) & (k - 100 <= q - 90)),
    lambda b, h, q, k: (k <= min(q, 69)) if q < 90 else 100 <= k <= q + 10,
)

# ---------------------------------------------------------------------------------------------------- multimodal

_spans = [(10, 30), (50, 51), (80, 140)]
_span = [next((s for s, (lo, hi) in enumerate(_spans) if lo <= i < hi), -1) for i in range(N)]
_span_table = _table(_span)
_image = _span_table >= 0


def _in_one_span(q: int, k: int) -> bool:
    return any(lo <= q < hi and lo <= k < hi for lo, hi in _spans)


_add(
    "41 causal or span",
    lambda b, h, q, k: (q >= k) | (_image[q] & _image[k] & (_span_table[q] == _span_table[k])),
    lambda b, h, q, k: k <= q or _in_one_span(q, k),
)
_add(
    "42 window or span",
    lambda b, h, q, k: ((q >= k) & (q - k < 25)) | ((_span_table[q] == _span_table[k]) & (_span_table[q] != -1)),
    lambda b, h, q, k: q - 25 < k <= q or _in_one_span(q, k),
)
_add(
    "43 Transfusion",
    lambda b, h, q, k: (q >= k) | ((q >= 10) & (k >= 10) & (k < 30)) | ((q >= 80) & (k >= 80) & (k < 140)),
    lambda b, h, q, k: k <= q or any(q >= lo and lo <= k < hi for lo, hi in ((10, 30), (80, 140))),
)
_noise = [1 if 100 <= i < 140 else -1 for i in range(N)]
_full_or_noise = [0 if 20 <= i < 60 else 1 if 100 <= i < 140 else -1 for i in range(N)]
_noise_table, _fn_table = _table(_noise), _table(_full_or_noise)
_halves = _table([int(i >= 150) for i in range(N)])
_add(
    "44 BAGEL",
    lambda b, h, q, k: (
        ((q >= k) | ((_fn_table[q] == _fn_table[k]) & (_fn_table[q] >= 0)))
        & ~((_noise_table[k] >= 0) & (_noise_table[q] != _noise_table[k]))
        & (_halves[q] == _halves[k])
    ),
    lambda b, h, q, k: (
        (k <= q or (q in range(20, 60) and k in range(20, 60)) or {_noise[q], _noise[k]} == {1})
        and not (k in range(100, 140) and q not in range(100, 140))
        and (q < 150) == (k < 150)
    ),
)
_seen_by = [(0, 60), (60, 61), (61, 190)]
_seen_table = _table([list(x) for x in _seen_by])
_image_of = _table([k // 64 for k in range(N)])


def _flamingo(b, h, q, k):
    interval = _seen_table[_image_of[k]]
    return (q >= interval[0]) & (q < interval[1])


_add("45 Flamingo", _flamingo, lambda b, h, q, k: q in range(*_seen_by[k // 64]))
_add(
    "46 SVG spatial",
    lambda b, h, q, k: (k < 30) | (q < 12) | (abs(q - k) < 32),
    lambda b, h, q, k: k < 30 or q < 12 or q - 32 < k < q + 32,
)
_add(
    "46 SVG temporal",
    lambda b, h, q, k: (k < 12) | (q < 12) | (abs((q - 12) % 36 - (k - 12) % 36) < 6),
    lambda b, h, q, k: min(q, k) < 12 or abs((q - 12) % 36 - (k - 12) % 36) in range(6),
)


def _clipped(c: int, low: int, high: int) -> int:
    return sorted((low, c, high))[1]


_add(
    "47 sliding tiles, with text",
    lambda b, h, q, k: (
        (
            (q < 144)
            & (k < 144)
            & (abs((q // 36).clamp(1, 2) - k // 36) <= 1)
            & (abs((q // 12 % 3).clamp(1, 1) - k // 12 % 3) <= 1)
        )
        | ((q < 144) & (k >= 144))
        | (q >= 144)
    ),
    lambda b, h, q, k: (
        q >= 144 or k >= 144 or k // 36 in range(_clipped(q // 36, 1, 2) - 1, _clipped(q // 36, 1, 2) + 2)
    ),
)
_top = [[[_rng.sample(range(12), 3) for _ in range(12)] for _ in range(2)] for _ in range(2)]
_top_table = _table(_top)
_tile_size = [16, 16, 9] * 4
_tile_table = _table(_tile_size)
_add(
    "48 VSA",
    lambda b, h, q, k: (_top_table[b, h, q // 16] == (k // 16).unsqueeze(-1)).any(-1) & (k % 16 < _tile_table[k // 16]),
    lambda b, h, q, k: k // 16 in _top[b][h][q // 16] and k % 16 < _tile_size[k // 16],
    B=2,
    H=2,
)
_ends = [(q // 24 + 1) * 24 for q in range(N)]
_ends_table = _table(_ends)
_add("49 block-causal video", lambda b, h, q, k: (k < _ends_table[q]) | (q == k), lambda b, h, q, k: k // 24 <= q // 24)
_add(
    "49 local video",
    lambda b, h, q, k: (k < _ends_table[q]) & (k >= _ends_table[q] - 72),
    lambda b, h, q, k: k // 24 in range(q // 24 - 2, q // 24 + 1),
)
_clean = N // 2
_add(
    "50 teacher forcing",
    lambda b, h, q, k: (
        (q == k)
        | ((q < 96) & (k < _ends_table[q]))
        | ((q >= 96) & (((q // 24 == k // 24) & (k >= 96)) | (k < (q - 96) // 24 * 24)))
    ),
    lambda b, h, q, k: (
        k < _ends[q] if q < _clean else (k // 24 == q // 24 if k >= _clean else k // 24 < (q - _clean) // 24)
    ),
)

# ------------------------------------------------------------------------------------------------------ geometry

W = 16  # canvas: 12 rows of 16


def _neighbourhood(c: int, size: int, length: int) -> range:
    centre = _clipped(c, size // 2, length - 1 - size // 2)
    return range(centre - size // 2, centre + size // 2 + 1)


_add(
    "51 NATTEN",
    lambda b, h, q, k: (abs((q // W).clamp(2, 9) - k // W) <= 2) & (abs((q % W).clamp(3, 12) - k % W) <= 3),
    lambda b, h, q, k: k // W in _neighbourhood(q // W, 5, 12) and k % W in _neighbourhood(q % W, 7, W),
)
_add(
    "51 NATTEN, dilated and causal",
    lambda b, h, q, k: (q // W >= k // W) & (q // W - k // W < 4) & (q // W % 2 == k // W % 2),
    lambda b, h, q, k: k // W in (q // W, q // W - 2),
)


def _bits(x, start):
    return sum(((x >> (start + 2 * i)) & 1) << i for i in range(4))


def _morton(x: int) -> tuple[int, int]:
    digits = f"{x:08b}"
    return int(digits[1::2], 2), int(digits[0::2], 2)


_add(
    "52 Morton NATTEN",
    lambda b, h, q, k: (abs(_bits(q, 0) - _bits(k, 0)) <= 2) & (abs(_bits(q, 1) - _bits(k, 1)) <= 1),
    lambda b, h, q, k: abs(_morton(q)[0] - _morton(k)[0]) <= 2 and abs(_morton(q)[1] - _morton(k)[1]) <= 1,
)
_region = [
    (0 if i // W < 6 else 1 if i // W < 9 else 2) * 3 + (0 if i % W < 8 else 1 if i % W < 12 else 2) for i in range(N)
]
_region_table = _table(_region)
_add(
    "53 Swin",
    lambda b, h, q, k: _region_table[q] == _region_table[k],
    lambda b, h, q, k: (
        any(q // W in r and k // W in r for r in (range(6), range(6, 9), range(9, 12)))
        and any(q % W in c and k % W in c for c in (range(8), range(8, 12), range(12, 16)))
    ),
)
_shifts = _table([0, 12])
_add(
    "54 S2-Attn",
    lambda b, h, q, k: (q + _shifts[h]) // 24 == (k + _shifts[h]) // 24,
    lambda b, h, q, k: divmod(q + 12 * h, 24)[0] == divmod(k + 12 * h, 24)[0],
    H=2,
)
_add(
    "55 LongNet",
    lambda b, h, q, k: (q // 64 == k // 64) & (q % 4 == h) & (k % 4 == h),
    lambda b, h, q, k: q // 64 == k // 64 and {q % 4, k % 4} == {h},
    H=4,
)

# ------------------------------------------------------------------------------------------------ global, learned

_global = [i in (0, 77, 78) for i in range(N)]
_global_table = _table(_global)
_add(
    "56 Longformer",
    lambda b, h, q, k: (abs(q - k) <= 20) | _global_table[q] | _global_table[k],
    lambda b, h, q, k: q - 20 <= k <= q + 20 or not {q, k}.isdisjoint({0, 77, 78}),
)
_layout = [[[_rng.random() < 0.2 for _ in range(24)] for _ in range(24)] for _ in range(2)]
_layout_table = _table(_layout)
_add(
    "57 BigBird",
    lambda b, h, q, k: _layout_table[h, q // 8, k // 8],
    lambda b, h, q, k: _layout[h][q // 8][k // 8],
    H=2,
)
_separator = [_rng.random() < 0.05 for _ in range(N)]
_separator_table = _table(_separator)
_add(
    "58 SepLLM",
    lambda b, h, q, k: (q >= k) & ((k < 3) | _separator_table[k] | (q - k < 16)),
    lambda b, h, q, k: k <= q and (k in range(3) or _separator[k] or k > q - 16),
)
_bucket = [_rng.randint(0, 5) for _ in range(N)]
_bucket_table = _table(_bucket)
_add("59 LSH", lambda b, h, q, k: _bucket_table[q] == _bucket_table[k], lambda b, h, q, k: _bucket[q] == _bucket[k])
_sorted_bucket = sorted(_bucket)
_sorted_table = _table(_sorted_bucket)
_add(
    "59 LSH, sorted",
    lambda b, h, q, k: _sorted_table[q] == _sorted_table[k],
    lambda b, h, q, k: _sorted_bucket[q] == _sorted_bucket[k],
)
_rank = _rng.sample(range(N), N)
_rank_table = _table(_rank)
_add("60 permutation LM", lambda b, h, q, k: _rank_table[k] <= _rank_table[q], lambda b, h, q, k: _rank[k] <= _rank[q])


def _hstu(b, h, q, k):
    row, col = (q - 7).clamp(min=0), (k - 7).clamp(min=0)
    row, col = torch.where(row > 150, 150, row), torch.where(col > 150, 150, col)
    distance = row - col
    return (q == k) | ((distance > 0) & ((distance <= 40) | (row >= 120))) | ((row == 0) & (col < 150))


def _hstu_rule(b: int, h: int, q: int, k: int) -> bool:
    row, col = min(max(q - 7, 0), 150), min(max(k - 7, 0), 150)
    return q == k or (col < row and (row - col <= 40 or row >= 120)) or (row == 0 and col < 150)


_add("61 HSTU", _hstu, _hstu_rule)

# ------------------------------------------------------------------------------------------ trees and diffusion

_parent = [-1] + [_rng.randrange(max(0, i - 9), i) for i in range(1, 64)]


def _ancestors(i: int) -> set[int]:
    return {i} if _parent[i] < 0 else {i} | _ancestors(_parent[i])


_tree = [_ancestors(i) for i in range(64)]
_tree_table = _table([[j in _tree[i] for j in range(64)] for i in range(64)])
_add(
    "62 token tree",
    lambda b, h, q, k: (k < 100) | ((k >= 100) & (k < 164) & _tree_table[q, (k - 100).clamp(min=0, max=63)]),
    lambda b, h, q, k: k < 100 or k - 100 in _tree[q],
    64,
    N,
)
_order: list[int] = []


def _visit(node: int) -> None:
    _order.append(node)
    for child in range(64):
        if _parent[child] == node:
            _visit(child)


_visit(0)
_place = {node: i for i, node in enumerate(_order)}
_exit = [1 + max(_place[j] for j in range(64) if node in _tree[j]) for node in _order]
_exit_table = _table(_exit)
_add(
    "63 tree in DFS order",
    lambda b, h, q, k: (q >= k) & (q < _exit_table[k]),
    lambda b, h, q, k: _order[k] in _tree[_order[q]],
    64,
    64,
)
_pre = _table([_place[i] for i in range(64)])
_post = _table([_exit[_place[i]] for i in range(64)])
_add(
    "64 tree by pre and post order",
    lambda b, h, q, k: (_pre[k] <= _pre[q]) & (_post[k] >= _post[q]),
    lambda b, h, q, k: _place[k] <= _place[q] and _exit[_place[k]] >= _exit[_place[q]],
    64,
    64,
)
_add(
    "65 EAGLE-3 training",
    lambda b, h, q, k: ((q >= k) & (k < 60)) | ((k >= 64) & (k % 64 < 60) & ((k - q) % 64 == 0)),
    lambda b, h, q, k: (k < 60 and k <= q) or (k in (q + 64, q + 128) and k % 64 < 60),
    64,
    N,
)
_add(
    "66 JetSpec training",
    lambda b, h, q, k: (k < 72) | ((k >= 72) & (q // 12 == (k - 72) // 12) & ((k - 72) % 12 <= q % 12)),
    lambda b, h, q, k: k < 72 or q - q % 12 <= k - 72 <= q,
    120,
    N,
)
_anchor, _keep = [10, 40, 41, 80, 95], [True, True, False, True, True]
_anchor_table, _keep_table = _table(_anchor), _table(_keep)
_add(
    "67 DFlash",
    lambda b, h, q, k: (
        (((k < 96) & (k < _anchor_table[q // 16])) | ((k >= 96) & (q // 16 == (k - 96) // 16))) & _keep_table[q // 16]
    ),
    lambda b, h, q, k: _keep[q // 16] and (k < _anchor[q // 16] if k < 96 else k // 16 - 6 == q // 16),
    80,
    176,
)


def _block_diffusion(b, h, q, k):
    q_block, k_block = q % 96 // 8, k % 96 // 8
    noisy_q, noisy_k = q < 96, k < 96
    return (
        ((q_block == k_block) & (noisy_q == noisy_k))
        | ((q_block > k_block) & noisy_q & ~noisy_k)
        | ((q_block >= k_block) & ~noisy_q & ~noisy_k)
    )


def _block_diffusion_rule(b: int, h: int, q: int, k: int) -> bool:
    if k < 96:
        return q < 96 and q // 8 == k // 8
    return (k - 96) // 8 < q // 8 if q < 96 else k // 8 <= q // 8


_add("68 block diffusion", _block_diffusion, _block_diffusion_rule)
_add(
    "69 block-causal decode",
    lambda b, h, q, k: k // 16 <= (q + 160) // 16,
    lambda b, h, q, k: k < 160 + q - q % 16 + 16,
    32,
)

# ---------------------------------------------------------------------------------------------- content-selected

_selected = [[[_rng.random() < 0.25 for _ in range(12)] for _ in range(N)] for _ in range(2)]
_selected_table = _table(_selected)
_add(
    "70 NSA selected",
    lambda b, h, q, k: (q >= k) & ((q // 16 == k // 16) | _selected_table[h, q, k // 16]),
    lambda b, h, q, k: k <= q and (q // 16 == k // 16 or _selected[h][q][k // 16]),
    H=2,
)
_add("71 NSA compressed", lambda b, h, q, k: q > k * 8 + 7, lambda b, h, q, k: k < q // 8, N, 24)
_add(
    "72 NSA window",
    lambda b, h, q, k: (q >= k) & (q - k < 24),
    lambda b, h, q, k: k in range(q - 23, q + 1),
)
_chosen = [[[int(j == q // 32) or int(_rng.random() < 0.3) for j in range(6)] for q in range(N)] for _ in range(2)]
_chosen_table = _table(_chosen)
_add(
    "73 MoBA",
    lambda b, h, q, k: (q >= k) & (_chosen_table[h, q, k // 32] != 0),
    lambda b, h, q, k: k <= q and _chosen[h][q][k // 32] > 0,
    H=2,
)
_dsa = [[[_rng.random() < 0.02 for _ in range(N)] for _ in range(N)] for _ in range(2)]
_dsa_table = _table(_dsa)
_add("74 DSA", lambda b, h, q, k: (q >= k) & _dsa_table[b, q, k], lambda b, h, q, k: k <= q and _dsa[b][q][k], B=2)
_add(
    "75 MiniMax-M3",
    lambda b, h, q, k: (q >= k) & (_layout_table[0, q // 8, k // 8] | (k < 16) | (q // 16 - k // 16 < 2)),
    lambda b, h, q, k: k <= q and (_layout[0][q // 8][k // 8] or k < 16 or k // 16 >= q // 16 - 1),
)
_kept = [[[_rng.random() < 0.7 for _ in range(N)] for _ in range(2)] for _ in range(2)]
_kept_table = _table(_kept)
_add(
    "76 KV-drop",
    lambda b, h, q, k: _kept_table[b, h, k] & (q >= k),
    lambda b, h, q, k: _kept[b][h][k] and k <= q,
    B=2,
    H=2,
)
