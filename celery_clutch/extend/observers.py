"""Tells observers: the hooks of plugins and the receivers of signals, those of `signals`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..model.events import Engaged, Event
from .plugins import Runtime

logger = logging.getLogger(__name__)


def heard(by: Runtime, signal: Any) -> bool:
    """Whether anybody listens."""
    return bool(signal.receivers) or bool(by.plugins.observers(signal.name))


def emit(by: Runtime, signal: Any, make: Callable[[], Event | None]) -> None:
    """Tell the hooks and receivers of *signal*; *make* is called only if there are any."""
    try:
        if not heard(by, signal) or (event := make()) is None:
            return
    except Exception:
        logger.exception("observers of %s could not be told", signal.name)
        return
    for name, observer in by.plugins.observers(signal.name):
        try:
            observer(event)
        except Exception:
            logger.exception("%s of the plugin %s failed", signal.name, name)
    signal.send(sender=by.app, event=event)  # logs what receivers raise


def context(by: Runtime, engaged: Engaged) -> dict[str, str]:
    """What observers want to travel with a run."""
    found: dict[str, str] = {}
    for name, observer in by.plugins.observers("clutch_context"):
        try:
            found.update(observer(engaged) or {})
        except Exception:
            logger.exception("clutch_context of the plugin %s failed", name)
    return found
