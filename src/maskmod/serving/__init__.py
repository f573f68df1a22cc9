"""Masks for servers: allocated once, rewritten in place at every step."""

from maskmod.serving.decode_plan import DecodePlan, Explanation
from maskmod.serving.ragged_plan import RaggedPlan

__all__ = ["DecodePlan", "Explanation", "RaggedPlan"]
