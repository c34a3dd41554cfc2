"""The hooks that plugins implement (pluggy). Mark implementations with `hookimpl`.

A plugin is a module or object named by an entry point of the group ``celery_clutch``::

    [project.entry-points.celery_clutch]
    mystore = "celery_clutch_mystore.plugin"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from .stores.base import ResultStore, StoreOptions

PROJECT = "celery_clutch"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def clutch_stores() -> Mapping[str, Callable[[str, StoreOptions], ResultStore]]:  # type: ignore[empty-body]
    """Name the stores this plugin brings: a factory by URL scheme.

    Fires once in each process for each app, the first time the app needs its store. The factory of
    the scheme of ``clutch_store`` is then called with the whole URL and the `StoreOptions`; it
    should import its client library only there, and raise `MissingExtra` when it is not installed.
    A scheme that another plugin has is a `PluginError`.
    """
