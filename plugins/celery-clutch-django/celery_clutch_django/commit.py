"""Engaging when a transaction commits."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from celery_clutch import Clutch, ClutchResult, Sequence
from celery_clutch.errors import InvalidParent
from celery_clutch.runtime.engage import engage


def engage_on_commit(
    clutch: Clutch | Sequence, using: str | None = None, **options: Any
) -> ClutchResult:
    """Engage *clutch* as it is now, when the transaction commits; not at all if it rolls back.

    Outside a transaction it is engaged at once.

    Args:
        clutch: a clutch, which can be changed and engaged again afterwards, or a sequence.
        using: the database whose transaction it is; default: the default one.
        options: those of ``engage()``.

    Returns:
        The handle of the run that will be. Until the commit there is none: it raises `RunNotFound`.

    Raises:
        InvalidParent: the clutch is nested, and so starts when its job returns.
        BuildError, ConfigurationError: as ``engage()``. What has to do with the store or the broker
            comes out of the commit.
    """
    composed = clutch.clutch() if isinstance(clutch, Sequence) else clutch
    if composed.parent is not None:
        raise InvalidParent(
            "a clutch with parent= starts when its job returns, with or without a transaction: "
            "engage() it"
        )
    prepared = composed.prepared()
    named = composed.id is not None
    transaction.on_commit(lambda: engage(prepared, options, named=named), using=using)
    return ClutchResult(prepared.run, prepared.app)
