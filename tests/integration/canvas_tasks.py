"""Tasks for the canvases of ``canvases.py``: what they do is what Celery's canvas is asked to do.

What is to be seen beside a value is noted in Redis, in the list ``it:notes:<tag>``.
"""

from __future__ import annotations

import json
from typing import Any

from celery import chain, chord, group, shared_task
from celery.exceptions import Ignore

from .app import notebook


class CanvasError(Exception):
    """What tasks raise here."""


def write(tag: str, *what: Any) -> None:
    """Note *what* under *tag*."""
    notebook().rpush(f"it:notes:{tag}", json.dumps(what))


@shared_task(name="canvas.same")
def same(x: Any) -> Any:
    """Return *x*."""
    return x


@shared_task(name="canvas.add")
def add(x: int, y: int, z: int = 0) -> int:
    """Add numbers."""
    return x + y + z


@shared_task(name="canvas.mul")
def mul(x: int, y: int) -> int:
    """Multiply numbers."""
    return x * y


@shared_task(name="canvas.total")
def total(numbers: Any) -> int:
    """Add the numbers of a list."""
    return sum(numbers)


@shared_task(name="canvas.deep_total")
def deep_total(numbers: Any) -> int:
    """Add the numbers of a list, and of the lists in it."""
    return sum(sum(x) if isinstance(x, list) else x for x in numbers)


@shared_task(name="canvas.called")
def called(*args: Any, **kwargs: Any) -> Any:
    """Return how it was called."""
    return [list(args), kwargs] if kwargs else list(args)


@shared_task(name="canvas.number")
def number() -> int:
    """Return a number, without arguments."""
    return 7


@shared_task(name="canvas.fail")
def fail(*args: Any) -> None:
    """Raise."""
    raise CanvasError("expected", *args)


@shared_task(name="canvas.again", bind=True, max_retries=3)
def again(self: Any, x: Any, times: int = 1) -> Any:
    """Retry, then return *x*."""
    if self.request.retries < times:
        raise self.retry(exc=CanvasError("again"), countdown=0)
    return x


@shared_task(name="canvas.give_up", bind=True, max_retries=1)
def give_up(self: Any, *args: Any) -> None:
    """Retry in vain."""
    raise self.retry(exc=CanvasError("given up"), countdown=0)


@shared_task(name="canvas.ignored")
def ignored(*args: Any) -> None:
    """Ask not to be recorded."""
    raise Ignore


@shared_task(name="canvas.note")
def note(value: Any, tag: str, label: str) -> Any:
    """Write *value* down, and return it."""
    write(tag, label, value)
    return value


@shared_task(name="canvas.note_only")
def note_only(tag: str, label: str) -> str:
    """Write down that it was called."""
    write(tag, label)
    return label


@shared_task(name="canvas.error")
def error(request: Any, exc: Any, traceback: Any, tag: str, label: str) -> None:
    """An errback that Celery calls inline."""
    write(tag, label, type(exc).__name__)


@shared_task(name="canvas.error_sent", bind=True)
def error_sent(self: Any, task_id: str, tag: str, label: str) -> None:
    """An errback that Celery sends as a task, as all that are bound."""
    write(tag, label, "sent")


@shared_task(name="canvas.stamps", bind=True)
def stamps(self: Any, *args: Any) -> Any:
    """Return the stamps of the message, those that Celery adds itself left out."""
    found = getattr(self.request, "stamps", None) or {}
    return {key: value for key, value in sorted(found.items())}


@shared_task(name="canvas.priority", bind=True)
def priority(self: Any, *args: Any) -> Any:
    """Return the priority of the message."""
    return self.request.delivery_info["priority"]


@shared_task(name="canvas.shop", bind=True)
def shop(self: Any, *args: Any) -> Any:
    """Return a header of the message."""
    return (self.request.headers or {}).get("shop") or getattr(self.request, "shop", None)


# --- tasks that put others in their place ---------------------------------------------------


@shared_task(name="canvas.add_replaced", bind=True)
def add_replaced(self: Any, x: int, y: int) -> Any:
    """Replace itself by a task."""
    raise self.replace(add.s(x, y))


@shared_task(name="canvas.replaced_by_chain", bind=True)
def replaced_by_chain(self: Any, *args: Any) -> Any:
    """Replace itself by a chain."""
    raise self.replace(chain(called.s(*args), same.s()))


@shared_task(name="canvas.replaced_by_noted_chain", bind=True)
def replaced_by_noted_chain(self: Any, x: Any, tag: str) -> Any:
    """Replace itself by a chain with a link of its own."""
    inner = chain(same.s(x), same.s())
    inner.link(note.s(tag, "inner link"))
    return self.replace(inner)


@shared_task(name="canvas.replaced_by_failing_chain", bind=True)
def replaced_by_failing_chain(self: Any, x: Any, tag: str) -> Any:
    """Replace itself by a chain that fails, with an errback of its own."""
    inner = chain(same.s(x), fail.s())
    inner.link_error(error.s(tag, "inner error"))
    return self.replace(inner)


@shared_task(name="canvas.replaced_by_nothing", bind=True)
def replaced_by_nothing(self: Any, *args: Any) -> Any:
    """Replace itself by an empty chain."""
    return self.replace(chain())


@shared_task(name="canvas.replaced_by_group", bind=True)
def replaced_by_group(self: Any, numbers: Any, more: int) -> Any:
    """Replace itself by a group."""
    raise self.replace(group(add.s(x, more) for x in numbers))


@shared_task(name="canvas.replaced_by_chord", bind=True)
def replaced_by_chord(self: Any, numbers: Any, more: int) -> Any:
    """Replace itself by a chord."""
    raise self.replace(chord([add.s(x, more) for x in numbers], total.s()))


@shared_task(name="canvas.replaced_by_chain_with_group", bind=True)
def replaced_by_chain_with_group(self: Any) -> Any:
    """Replace itself by a chain that ends in a group."""
    return self.replace(chain(add.s(1, 2), group(add.s(1), add.s(1))))


@shared_task(name="canvas.fail_replaced", bind=True)
def fail_replaced(self: Any, *args: Any) -> Any:
    """Replace itself by a task that fails."""
    raise self.replace(fail.si(*args))


@shared_task(name="canvas.outer_replaced", bind=True)
def outer_replaced(self: Any, tag: str, state: bool = False) -> Any:
    """Replace itself by one that replaces itself, and go on behind it."""
    write(tag, "out A" if state else "in A")
    if not state:
        raise self.replace(chain(inner_replaced.si(tag), outer_replaced.si(tag, state=True)))


@shared_task(name="canvas.inner_replaced", bind=True)
def inner_replaced(self: Any, tag: str, state: bool = False) -> Any:
    """Replace itself, once more."""
    write(tag, "out B" if state else "in B")
    if not state:
        raise self.replace(chain(note_only.si(tag, "C"), inner_replaced.si(tag, state=True)))


@shared_task(name="canvas.adds_to_chord", bind=True)
def adds_to_chord(self: Any, numbers: Any, more: int) -> int:
    """Add tasks to the chord that it is in the header of."""
    for x in numbers:
        self.add_to_chord(add.s(x, more))
    return 0
