"""Masks as pictures: text in a terminal, matplotlib for a paper, one page of HTML to look around in, and notebooks.

This room decides how a mask looks, never what it means.
"""

from maskmod.algebra import Mask
from maskmod.pictures.notebook import html_of

__all__: list[str] = []


def _repr_html_(self: Mask) -> str:
    """The mask's text, and a small drawing where its tables reach a small size."""
    return html_of(self)


# Notebooks call this method; the mask itself may not know of pictures, which lie further down the house.
Mask._repr_html_ = _repr_html_
