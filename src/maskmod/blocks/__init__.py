"""Masks in blocks: classify them, build flex's `BlockMask`, paint a dense mask.

This package does not know what a mask means, only how to ask.
"""
