"""For tests: Celery in this process, and the suite that every store passes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .embedded import embedded

if TYPE_CHECKING:
    from .contract import StoreContract

__all__ = ["StoreContract", "embedded"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: it needs pytest and hypothesis, which `embedded` does not.
    if name == "StoreContract":
        module = f"{__name__}.contract"
        if module not in sys.modules and (pytest := sys.modules.get("pytest")):
            # Asserts in an installed package show what was compared only if pytest knows before.
            pytest.register_assert_rewrite(module)
        from .contract import StoreContract

        return StoreContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
