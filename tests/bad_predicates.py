"""Predicates with one fault each; the line of the fault ends in a comment that says so."""

import math
import random

import numpy as np
import torch

NUMPY = np.arange(300)
LIST = [0] * 300
DICT = dict.fromkeys(range(300), 0)
ROWS = torch.zeros(2, 300).long()
BITS = torch.arange(300) % 7 < 5
TABLE = torch.arange(300)
COUNT = torch.zeros((), dtype=torch.long)
CALLS: list[int] = []


def if_returns(b, h, q_idx, kv_idx):
    if q_idx > 5:  # here
        return kv_idx < 3
    return kv_idx <= q_idx


def if_assigns(b, h, q_idx, kv_idx):
    size = 3
    if q_idx > 5:  # here
        size = 5
    return kv_idx <= q_idx + size


def if_expression(b, h, q_idx, kv_idx):
    return kv_idx <= (q_idx if q_idx > 4 else 4)  # here


def and_or(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx and (kv_idx > 3) | (q_idx > 5)  # here


def not_(b, h, q_idx, kv_idx):
    return not (q_idx >= kv_idx)  # here


def chain(b, h, q_idx, kv_idx):
    return 0 <= q_idx - kv_idx < 8  # here


def item(b, h, q_idx, kv_idx):
    n = q_idx.item()  # here
    return kv_idx <= n


def int_(b, h, q_idx, kv_idx):
    return kv_idx <= int(q_idx / 2)  # here


def max_number(b, h, q_idx, kv_idx):
    return kv_idx <= max(q_idx, 5)  # here


def min_tensors(b, h, q_idx, kv_idx):
    return min(q_idx, kv_idx) < 4  # here


def in_(b, h, q_idx, kv_idx):
    return kv_idx in (0, 1, 2)  # here


def math_(b, h, q_idx, kv_idx):
    return math.floor(q_idx / 3) >= kv_idx  # here


def while_(b, h, q_idx, kv_idx):
    while kv_idx > q_idx:  # here
        kv_idx = kv_idx - 8
    return kv_idx < 8


def range_(b, h, q_idx, kv_idx):
    seen = kv_idx == 0
    for step in range(q_idx):  # here
        seen = seen | (kv_idx == step)
    return seen


def assert_(b, h, q_idx, kv_idx):
    assert q_idx >= 0  # here
    return kv_idx <= q_idx


def helper(i):
    return 1 if i > 3 else 0  # here


def in_a_helper(b, h, q_idx, kv_idx):
    return helper(q_idx) == helper(kv_idx)


def double(b, h, q_idx, kv_idx):
    return ROWS[b][q_idx] == kv_idx * 0  # here


def numpy_table(b, h, q_idx, kv_idx):
    return torch.as_tensor(NUMPY[q_idx] >= kv_idx)  # here


def list_table(b, h, q_idx, kv_idx):
    return LIST[q_idx] == kv_idx  # here


def dict_table(b, h, q_idx, kv_idx):
    return DICT[q_idx] == kv_idx  # here


def numpy_function(b, h, q_idx, kv_idx):
    return np.maximum(q_idx, kv_idx) < 4  # here


class Holder:
    def __init__(self):
        self.table = [1] * 300
        self.n = 0

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[q_idx] >= kv_idx  # here

    def method(self, b, h, q_idx, kv_idx):
        self.n += 1  # here
        return kv_idx <= q_idx


object_ = Holder()
method = Holder().method


def a_float(b, h, q_idx, kv_idx):
    return (q_idx - kv_idx) * 0.5  # here


def a_vector(b, h, q_idx, kv_idx):
    return ROWS[b] == kv_idx  # here


def past_the_end(b, h, q_idx, kv_idx):
    return TABLE[(q_idx + 1) * 150] <= TABLE[kv_idx]  # here


def before_the_start(b, h, q_idx, kv_idx):
    return BITS[q_idx - 1] | (kv_idx <= q_idx)  # here


def overflow(b, h, q_idx, kv_idx):
    return q_idx * 65536 >= kv_idx * 65536  # here


def narrow(b, h, q_idx, kv_idx):
    return q_idx.to(torch.int16) * 1000 >= kv_idx  # here


def torch_random(b, h, q_idx, kv_idx):
    return torch.rand(()) + 0 * q_idx > 0.5  # here


def python_random(b, h, q_idx, kv_idx):
    return kv_idx <= q_idx + random.randrange(100)  # here


def in_place(b, h, q_idx, kv_idx):
    COUNT.add_(1)  # here
    return kv_idx <= q_idx


def append(b, h, q_idx, kv_idx):
    CALLS.append(1)  # here
    return kv_idx <= q_idx


def compiles_to_another(b, h, q_idx, kv_idx):
    if torch.compiler.is_compiling():
        return kv_idx < q_idx
    return kv_idx <= q_idx  # here


def graph_break(b, h, q_idx, kv_idx):
    torch._dynamo.graph_break()  # here
    return kv_idx <= q_idx


def if_on_a_table(b, h, q_idx, kv_idx):
    if TABLE.sum() > 1:  # here
        return kv_idx <= q_idx
    return kv_idx < q_idx


def prints(b, h, q_idx, kv_idx):
    print("mask")  # here
    return kv_idx <= q_idx


def arity(q_idx, kv_idx):  # here
    return q_idx >= kv_idx


def per_head(b, h, q_idx, kv_idx):  # here
    return q_idx - kv_idx <= h * 4


def not_followed(b, h, q_idx, kv_idx):
    return torch.stack([q_idx, kv_idx]).amax() % 2 == 0  # here
