"""transformers' ``masking_utils``, name by name, built from maskmod masks. transformers itself is never imported.

Same arguments, same results, down to None; ``docs/transformers.md`` lists what differs and why. `install` makes every
loaded model use these functions.
"""

from __future__ import annotations

from maskmod.compat.transformers import create as _create
from maskmod.compat.transformers import implementation as _implementation
from maskmod.compat.transformers import interfaces as _interfaces
from maskmod.compat.transformers import predicates as _predicates
from maskmod.compat.transformers import switch as _switch
from maskmod.compat.transformers.create import *  # noqa: F403
from maskmod.compat.transformers.implementation import *  # noqa: F403
from maskmod.compat.transformers.interfaces import *  # noqa: F403
from maskmod.compat.transformers.predicates import *  # noqa: F403
from maskmod.compat.transformers.switch import *  # noqa: F403

__all__ = [*_create.__all__, *_implementation.__all__, *_interfaces.__all__, *_predicates.__all__, *_switch.__all__]  # pyright: ignore[reportUnsupportedDunderAll]
