"""Masks for servers: allocated once, rewritten in place at every step."""

from maskmod.serving.decode_plan import DecodePlan, Explanation

__all__ = ["DecodePlan", "Explanation"]
