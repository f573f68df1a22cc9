"""Attention masks as one-line predicates ``(b, h, q_idx, kv_idx) -> bool``."""

__version__ = "0.1.0"
