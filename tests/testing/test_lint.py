"""The linter: one bad predicate for each finding, with its line and its words; and good ones, without a finding."""

from __future__ import annotations

import functools
import inspect
import json
import random

import numpy
import pytest
import torch

import bad_predicates as bad
from maskmod import Mask, causal, mask_mod, sliding_window
from maskmod.masks.catalog import CATALOG
from maskmod.testing import Finding, check


def expected(fn) -> tuple[int, str]:
    """The line that a predicate marks with ``# here``, and its code."""
    fn = getattr(fn, "__func__", fn)
    if not inspect.isfunction(fn):
        fn = type(fn).__call__
    lines, start = inspect.getsourcelines(fn)
    offset = next(i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    return start + offset, lines[offset].strip()


# ruff: noqa: E501  (a table reads best in rows)
# name: kind, level, in the reason, the rewrite
BAD = {
    "if_returns": ("truth-value", "error", "`if q_idx > 5`", "return torch.where(q_idx > 5, kv_idx < 3, kv_idx <= q_idx)"),
    "if_assigns": ("truth-value", "error", "`if q_idx > 5`", "compute both branches, then pick: torch.where(q_idx > 5, ..., ...)"),
    "if_expression": ("truth-value", "error", "`... if q_idx > 4 else ...`", "torch.where(q_idx > 4, q_idx, 4)"),
    "and_or": ("truth-value", "error", "`and` asks", "(q_idx >= kv_idx) & ((kv_idx > 3) | (q_idx > 5))"),
    "not_": ("truth-value", "error", "`not` asks", "(q_idx >= kv_idx) ^ True"),
    "chain": ("truth-value", "error", "the chained comparison `0 <= q_idx - kv_idx < 8` is an `and`", "(0 <= q_idx - kv_idx) & (q_idx - kv_idx < 8)"),
    "item": ("truth-value", "error", "`.item()` asks", "q_idx, which is a tensor and may stay one"),
    "int_": ("truth-value", "error", "`int()` asks", "(q_idx / 2).long()"),
    "max_number": ("truth-value", "error", "Python's `max` compares", "q_idx.clamp(min=5)"),
    "min_tensors": ("truth-value", "error", "Python's `min` compares", "torch.minimum(q_idx, kv_idx)"),
    "in_": ("truth-value", "error", "`in` asks", "(kv_idx == 0) | (kv_idx == 1) | (kv_idx == 2)"),
    "math_": ("truth-value", "error", "`math.floor` asks", "torch.floor(q_idx / 3)"),
    "while_": ("truth-value", "error", "`while kv_idx > q_idx`", "loop a fixed number of times, and pick with torch.where"),
    "range_": ("truth-value", "error", "`range` asks", "torch.arange(n), compared with the index, then .any()"),
    "assert_": ("truth-value", "error", "`assert` asks", "assert outside the predicate"),
    "in_a_helper": ("truth-value", "error", "`... if i > 3 else ...`", "torch.where(i > 3, 1, 0)"),
    "double": ("double-index", "warning", "`ROWS[b][q_idx]` takes a whole row first", "ROWS[b, q_idx]"),
    "numpy_table": ("table", "error", "`NUMPY` is a numpy table", "NUMPY = torch.from_numpy(NUMPY), once, outside the predicate"),
    "list_table": ("table", "error", "`LIST` is a Python list", "LIST = torch.tensor(LIST), once, outside the predicate"),
    "dict_table": ("table", "error", "`DICT` is a Python dict", "DICT = torch.tensor([DICT[i] for i in range(n)]), once, outside the predicate"),
    "numpy_function": ("table", "error", "numpy's `maximum`", "torch.maximum(q_idx, kv_idx)"),
    "object_": ("table", "error", "`self.table` is a Python list", "self.table = torch.tensor(self.table), once, outside the predicate"),
    "a_float": ("result", "error", "it returned float32[], not a bool", "compare (`x != 0`)"),
    "a_vector": ("result", "error", "it returned bool[300], not a scalar", "Reduce it with .any() or .all()"),
    "past_the_end": ("out-of-range", "error", "an index is out of range at B=1 H=1 q_len=192", "(i < n) & table[i.clamp(max=n - 1)]"),
    "before_the_start": ("wraps", "warning", "reads entry -1 of dimension 0 of a table of shape [300]", "(i >= 0) & table[i.clamp(min=0)]"),
    "overflow": ("overflow", "warning", "past int32, in flex's kernels, whose indices are int32", "`.long()` on the index first"),
    "narrow": ("overflow", "warning", "past int16, here", "`.long()` on the index first"),
    "torch_random": ("random", "error", "draws random numbers anew at each call", "draw a table once"),
    "python_random": ("random", "error", "the same call gives another answer the second time", "draw a table once"),
    "in_place": ("mutation", "error", "a call changes `COUNT`", "compute a new value, and return it"),
    "append": ("mutation", "error", "a call changes `CALLS`", "compute a new value, and return it"),
    "method": ("mutation", "error", "a call changes `self.n`", "compute a new value, and return it"),
    "compiles_to_another": ("compiled-differs", "error", "compiled, True eagerly", "fixed tensors alone"),
    "graph_break": ("graph-break", "error", "it breaks the graph: Call to `torch._dynamo.graph_break()`", "take the graph_break() out"),
    "if_on_a_table": ("graph-break", "error", "it breaks the graph: Data-dependent branching", "torch.where(condition, a, b)"),
    "prints": ("side-effect", "error", "`print` breaks the graph", "print outside the predicate"),
    "arity": ("arity", "error", "its signature is arity(q_idx, kv_idx), not four positional indices", "(b, h, q_idx, kv_idx)"),
}  # fmt: skip
NEEDS_DYNAMO = ("compiles_to_another", "graph_break", "if_on_a_table", "prints")


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_named_with_its_line_and_its_rewrite(name: str, capsys):
    kind, level, reason, rewrite = BAD[name]
    fn = getattr(bad, name)
    random.seed(0)  # two calls of the predicate that draws do differ
    report = check(fn, compiled=name in NEEDS_DYNAMO)
    faults = [finding for finding in report.findings if finding.level != "note"]
    assert [finding.kind for finding in faults] == [kind], str(report)
    found = faults[0]
    line, code = expected(bad.helper if name == "in_a_helper" else fn)
    assert (found.level, found.file, found.line, found.code) == (level, bad.__file__, line, code)
    assert reason in found.reason
    assert rewrite in found.rewrite
    assert not report.ok
    assert f"{bad.__file__}:{line}: {level}: " in str(report)
    assert f"write: {found.rewrite}" in str(report)
    assert capsys.readouterr().out == ""  # what the predicate prints is not ours to show


@pytest.mark.parametrize(
    "name",
    [name for name, row in BAD.items() if row[3].startswith(("torch.", "return ", "(q", "(k", "(0", "q_idx.", "ROWS"))],
)
def test_rewrites_are_python(name: str):
    for finding in check(getattr(bad, name), compiled=False).findings:
        if finding.level != "note" and not finding.rewrite.startswith(("torch.arange", "clamp")):
            compile(finding.rewrite.removeprefix("return ").partition(", which")[0], "rewrite", "eval")


def test_a_rewrite_that_is_followed_leaves_no_finding():
    for good in (
        lambda b, h, q_idx, kv_idx: torch.where(q_idx > 5, kv_idx < 3, kv_idx <= q_idx),
        lambda b, h, q_idx, kv_idx: (q_idx - kv_idx >= 0) & (q_idx - kv_idx < 8),
        lambda b, h, q_idx, kv_idx: kv_idx <= q_idx.clamp(min=5),
        lambda b, h, q_idx, kv_idx: kv_idx <= (q_idx / 2).long(),
        lambda b, h, q_idx, kv_idx: ((q_idx >= 1) & bad.BITS[(q_idx - 1).clamp(min=0)]) | (kv_idx == q_idx),
        lambda b, h, q_idx, kv_idx: bad.ROWS[b, q_idx] == bad.ROWS[b, kv_idx],
    ):
        report = check(good, compiled=False)
        assert report.findings == (), str(report)


def test_h_read_with_one_head():
    report = check(bad.per_head, H=1, compiled=False)
    assert [(f.kind, f.level, f.line) for f in report.findings] == [("head", "warning", expected(bad.per_head)[0])]
    assert check(bad.per_head, H=4, compiled=False).ok
    assert check(bad.per_head, compiled=False).facts.reads == "h"


def test_notes_leave_a_report_ok():
    report = check(bad.not_followed, compiled=False)
    assert report.ok
    kinds = {f.kind: f for f in report.findings}
    assert set(kinds) <= {"not-analysed", "empty-row"}
    assert "a recording scalar inside a container" in kinds["not-analysed"].reason
    assert kinds["not-analysed"].line == expected(bad.not_followed)[0]
    assert report.facts.opened == report.facts.blocks
    (empty,) = check(lambda b, h, q_idx, kv_idx: kv_idx < q_idx, compiled=False).findings
    assert (empty.kind, empty.level) == ("empty-row", "note")
    assert "query 0 of b=0, h=0 sees no key" in empty.reason


def test_leaks_are_facts_unless_causality_was_promised():
    def leaks(b, h, q_idx, kv_idx):
        return kv_idx <= q_idx + 1

    report = check(leaks, compiled=False)
    assert report.ok
    assert report.facts.leaks_future == (0, 0, 0, 1)
    assert "sees later keys: query 0 sees key 1" in str(report)
    (leak,) = check(leaks, causal=True, compiled=False).findings
    assert (leak.kind, leak.level) == ("leak", "error")
    assert check(causal() & sliding_window(4), causal=True, compiled=False).ok


def test_facts_say_how_precise_and_how_fast():
    facts = check(causal(), q_len=512, kv_len=512).facts
    assert (facts.sizes, facts.blocks, facts.opened, facts.graphs) == ((1, 1, 512, 512), 16, 0, 1)
    assert facts.visible == pytest.approx(513 / 1024)
    assert facts.analysis_ms is not None
    assert 0 < facts.analysis_ms < 1000
    loose = check(
        lambda b, h, q_idx, kv_idx: torch.sin(q_idx * 1.0 + kv_idx) > 2, q_len=256, kv_len=256, compiled=False
    )
    assert (loose.facts.analysed, loose.facts.opened) == (True, 4)


def test_several_lengths_are_one_graph_and_a_branch_on_a_length_is_not():
    def by_length(length):
        def mask(b, h, q_idx, kv_idx):
            return kv_idx <= q_idx

        return mask

    assert check(by_length(3)).facts.graphs == 1


def test_sizes_that_the_tables_reach_are_found():
    ids = torch.zeros(3, 40).long()
    report = check(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx], compiled=False)
    assert report.facts.sizes == (3, 1, 40, 40)
    assert report.ok
    past = check(lambda b, h, q_idx, kv_idx: ids[b, q_idx] == ids[b, kv_idx], q_len=41, compiled=False)
    assert [f.kind for f in past.findings] == ["out-of-range"]


def test_every_kind_of_callable_is_read():
    class Node(Mask):
        size: int

        def __call__(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx and q_idx - kv_idx < self.size

    class Module(torch.nn.Module):
        def forward(self, b, h, q_idx, kv_idx):
            return q_idx >= kv_idx and kv_idx > 3

    def bound(n, b, h, q_idx, kv_idx):
        return q_idx >= kv_idx and kv_idx > n

    both = lambda b, h, q, k: q >= k and k > 3, lambda b, h, q, k: q >= k
    for fn in (
        Node(3),
        causal() & Node(3),
        Module(),
        functools.partial(bound, 3),
        mask_mod(both[0]),
        causal() | both[0],
    ):
        report = check(fn, compiled=False)
        assert [(f.kind, f.file) for f in report.findings] == [("truth-value", __file__)], fn
    assert check(both[1], compiled=False).ok


def test_a_branch_on_what_is_no_tensor_is_none_of_ours():
    left, table = True, numpy.arange(4)

    def fine(b, h, q_idx, kv_idx):
        size = max(3, len(table))
        if (left and size > 2) or q_idx.dtype == torch.int32:
            size += 1 if isinstance(q_idx, torch.Tensor) else 0
        return (kv_idx <= q_idx) & (q_idx - kv_idx < size)

    assert check(fine).findings == ()


def test_json_holds_everything():
    report = check(bad.chain, compiled=False)
    content = json.loads(report.to_json())
    assert (content["ok"], content["name"]) == (False, "chain")
    assert Finding(**content["findings"][0]) == report.findings[0]
    assert content["facts"]["sizes"] == list(report.facts.sizes)


# ------------------------------------------------------------------------------------------- no false alarm


def alarms(report) -> list:
    return [finding for finding in report.findings if finding.kind != "empty-row"]


def test_no_alarm_on_the_catalog(pytestconfig):
    for entry in CATALOG:
        B, H, q_len, kv_len = entry.size
        report = check(entry.build(), B=B, H=H, q_len=q_len, kv_len=kv_len, compiled=pytestconfig.getoption("--long"))
        assert alarms(report) == [], (entry.name, str(report))
        assert alarms(check(entry.build(), compiled=False)) == [], entry.name


def test_no_alarm_on_attention_gym(pytestconfig):
    gym = pytest.importorskip("attn_gym.masks")
    top = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(0))[:3] for _ in range(32)])
    offsets = torch.tensor([0, 40, 50, 128])
    tree = gym.build_tree_ancestor_matrix([-1, *(max(0, i - 1 - i % 7) for i in range(1, 64))], device="cpu")
    masks = {
        "causal": gym.causal_mask,
        "window": gym.generate_sliding_window(30),
        "dilated": gym.generate_dilated_sliding_window(30, 3),
        "prefix": gym.generate_prefix_lm_mask(30),
        "documents": gym.generate_doc_mask_mod(gym.causal_mask, offsets),
        "packed": gym.generate_packed_causal_doc_mask_mod(offsets),
        "diffusion": gym.generate_block_diffusion_mask(64, 16),
        "natten": gym.generate_natten(8, 16, 3, 5),
        "tiled natten": gym.generate_tiled_natten(16, 8, 3, 3, 4, 4),
        "morton": gym.generate_morton_natten(16, 8, 3, 3),
        "sta": gym.generate_sta_mask_mod_2d((16, 8), (8, 4), (4, 4), 0),
        "jetspec": gym.generate_jetspec_tree_causal_mask_mod(64, tree),
        "shared prefix": gym.generate_shared_prefix_mask_mod(offsets, torch.tensor([0, 0, 2])),
        "vsa": gym.generate_vsa_mask_mod(top.view(2, 2, 8, 3), 16, torch.full((8,), 16)),
    }
    for name, mask in masks.items():
        B = H = 2 if name == "vsa" else 1
        q_len = 64 if name == "jetspec" else 128
        report = check(mask, B=B, H=H, q_len=q_len, kv_len=128, compiled=pytestconfig.getoption("--long"))
        assert alarms(report) == [], (name, str(report))


def test_no_alarm_on_transformers():
    masking = pytest.importorskip("transformers.masking_utils")
    padding = torch.ones(2, 64, dtype=torch.bool)
    ids = torch.arange(64).expand(2, 64) // 20
    masks = [
        masking.causal_mask_function,
        masking.bidirectional_mask_function,
        masking.sliding_window_causal_mask_function(8),
        masking.chunked_causal_mask_function(8, torch.zeros(2).long()),
        masking.padding_mask_function(padding),
        masking.packed_sequence_mask_function(ids),
        masking.and_masks(masking.causal_mask_function, masking.padding_mask_function(padding)),
        masking.or_masks(masking.causal_mask_function, masking.packed_sequence_mask_function(ids)),
        masking.add_offsets_to_mask_function(masking.causal_mask_function, 3, 0),
    ]
    for mask in masks:
        report = check(mask, B=2, q_len=32 if "offsets" in mask.__qualname__ else 64, kv_len=64, compiled=False)
        assert alarms(report) == [], str(report)
    assert alarms(check(masks[2], B=2, q_len=64, kv_len=64)) == []


def test_no_alarm_on_predicates_in_production():
    production = pytest.importorskip("benchmarks.production")
    for make in production.PRODUCTION.values():
        predicate = make()
        B, H, q_len, kv_len = predicate.sizes
        report = check(predicate.mask, B=B, H=H, q_len=min(q_len, 512), kv_len=min(kv_len, 1024), compiled=False)
        assert alarms(report) == [], (predicate.name, str(report))
