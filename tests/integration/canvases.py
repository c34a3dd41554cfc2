"""Canvases of the kinds that Celery's own integration tests have, and a few more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celery import chain, chord, group
from celery.canvas import Signature, StampingVisitor

from .canvas_tasks import (
    add,
    add_replaced,
    adds_to_chord,
    again,
    called,
    deep_total,
    error,
    error_sent,
    fail,
    fail_replaced,
    give_up,
    mul,
    note,
    note_only,
    number,
    outer_replaced,
    priority,
    replaced_by_chain,
    replaced_by_chain_with_group,
    replaced_by_chord,
    replaced_by_failing_chain,
    replaced_by_group,
    replaced_by_noted_chain,
    replaced_by_nothing,
    same,
    shop,
    stamps,
    total,
)


@dataclass(frozen=True)
class Notes:
    """Signatures that write down under *tag* that they were called."""

    tag: str

    def value(self, label: str = "value") -> Signature:
        """Notes the value before it."""
        return note.s(self.tag, label)

    def only(self, label: str = "only") -> Signature:
        """Notes that it was called, whatever is before it."""
        return note_only.si(self.tag, label)

    def error(self, label: str = "error") -> Signature:
        """An errback that is called inline."""
        return error.s(self.tag, label)

    def sent(self, label: str = "error") -> Signature:
        """An errback that is sent."""
        return error_sent.s(self.tag, label)


CANVASES: dict[str, Callable[[Notes], Any]] = {}


def linked(sig: Any, *links: Any) -> Any:
    """*sig* with links."""
    for link in links:
        sig.link(link)
    return sig


def errs(sig: Any, *errbacks: Any) -> Any:
    """*sig* with errbacks."""
    for errback in errbacks:
        sig.link_error(errback)
    return sig


def given(sig: Any, *args: Any) -> Any:
    """*sig* with arguments of its own, for its first task or its header."""
    sig.args = args
    return sig


def frozen(sig: Any) -> Any:
    """*sig* with ids, as Celery gives them before it sends something."""
    sig.freeze()
    return sig


def stored(sig: Any) -> Any:
    """*sig* after a way through JSON."""
    return Signature.from_dict(json.loads(json.dumps(sig)))


class Stamp(StampingVisitor):  # type: ignore[misc]
    """Stamps every signature."""

    def __init__(self, **stamp: Any) -> None:
        self.stamp = stamp

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        return self.stamp


def stamped(sig: Any) -> Any:
    """*sig* with a stamp on all of its tasks."""
    sig.stamp(Stamp(mark="blue"))
    return sig


CANVASES.update(
    # --- signatures -----------------------------------------------------------------------
    task=lambda n: add.s(1, 2),
    task_with_keyword=lambda n: add.s(1, 2, z=3),
    task_partly_applied=lambda n: add.s(2).clone((1,)),
    task_with_link=lambda n: linked(add.s(1, 2), n.value()),
    task_with_two_links=lambda n: linked(add.s(1, 2), n.value("a"), n.only("b")),
    task_with_linked_chain=lambda n: linked(add.s(1, 2), chain(add.s(10), n.value())),
    task_with_linked_link=lambda n: linked(add.s(1, 2), linked(add.s(5), n.value())),
    task_that_fails=lambda n: fail.s(),
    task_with_errback=lambda n: errs(fail.s(), n.error()),
    task_with_errback_sent=lambda n: errs(fail.s(), n.sent()),
    task_with_immutable_errback=lambda n: errs(fail.s(), n.only()),
    task_with_errbacks=lambda n: errs(fail.s(), n.error("a"), n.sent("b"), n.only("c")),
    task_with_link_that_fails=lambda n: linked(add.s(1, 2), errs(fail.s(), n.error())),
    task_that_retries=lambda n: again.s(5, times=2),
    task_that_gives_up=lambda n: errs(give_up.s(), n.error()),
    task_frozen=lambda n: frozen(add.s(1, 2)),
    task_stored=lambda n: stored(linked(add.s(1, 2), n.value())),
    task_stamped=lambda n: stamped(stamps.s()),
    task_with_headers=lambda n: shop.s().set(headers={"shop": "Trier"}),
    task_with_countdown=lambda n: add.s(1, 2).set(countdown=0.2),
    # --- chains ---------------------------------------------------------------------------
    chain_of_one=lambda n: chain(add.s(1, 2)),
    chain_of_three=lambda n: chain(add.s(1, 2), add.s(3), mul.s(4)),
    chain_with_immutable=lambda n: chain(add.s(1, 2), number.si(), add.s(3)),
    chain_by_pipes=lambda n: add.s(1, 2) | add.s(3) | add.s(4),
    chain_in_chain=lambda n: chain(add.s(1, 1), chain(add.s(2), add.s(3)), add.s(4)),
    chain_of_chain_of_one=lambda n: chain(chain(add.s(1, 2))),
    chain_with_arguments=lambda n: given(chain(add.s(1), add.s(2)), 5),
    chain_with_link=lambda n: linked(chain(add.s(1, 2), add.s(3)), n.value()),
    chain_with_linked_members=lambda n: chain(
        linked(add.s(1, 2), n.value("a")), linked(add.s(3), n.value("b"))
    ),
    chain_inner_with_link=lambda n: chain(
        linked(chain(same.s(1), add.s(2)), n.value("in")), add.s(3)
    ),
    chain_that_fails=lambda n: chain(fail.s(), n.only("never")),
    chain_that_fails_midway=lambda n: chain(add.s(1, 1), fail.s(), n.value("never")),
    chain_with_errback=lambda n: errs(chain(add.s(1, 1), fail.s(), same.s()), n.error()),
    chain_with_errback_of_first=lambda n: chain(errs(fail.s(), n.error()), same.s()),
    chain_with_errback_of_last=lambda n: chain(fail.s(), errs(same.s(), n.error("never"))),
    chain_with_errback_sent=lambda n: errs(chain(fail.s(), same.s()), n.sent()),
    chain_with_errback_and_eta=lambda n: errs(
        chain(add.s(1, 1).set(countdown=0.1), fail.s()), n.error()
    ),
    chain_inner_with_errback=lambda n: chain(
        same.s(1), errs(chain(same.s(), fail.s()), n.error("in")), same.s()
    ),
    chain_that_retries=lambda n: chain(again.s(3), again.s(times=2), add.s(1)),
    chain_frozen=lambda n: frozen(chain(add.s(1, 2), add.s(3))),
    chain_frozen_twice=lambda n: frozen(frozen(chain(add.s(1, 2), add.s(3)))),
    chain_stored=lambda n: stored(chain(add.s(1, 2), add.s(3))),
    chain_frozen_and_stored=lambda n: stored(frozen(chain(add.s(1, 2), add.s(3)))),
    chain_stamped=lambda n: stamped(chain(stamps.s(), called.s())),
    chain_with_priority=lambda n: chain(priority.s().set(priority=3), called.s()),
    # --- groups ---------------------------------------------------------------------------
    group_of_one=lambda n: group([add.s(1, 2)]),
    group_of_three=lambda n: group(add.s(1, 2), add.s(3, 4), number.s()),
    group_of_generator=lambda n: group(add.s(i, i) for i in range(8)),
    group_with_keywords=lambda n: group(called.s(a=1), called.s(2, b=3)),
    group_in_group=lambda n: group(group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)),
    group_in_group_in_group=lambda n: group([group([group([add.s(1, 1)])])]),
    group_of_chains=lambda n: group(chain(add.s(1, 1), add.s(2)), chain(add.s(3, 3), add.s(4))),
    group_of_chords=lambda n: group(
        chord([add.s(1, 1), add.s(2, 2)], total.s()), chord([add.s(3, 3)], total.s())
    ),
    group_of_all=lambda n: group(
        add.s(1, 1), chain(add.s(1, 1), add.s(2)), chord([add.s(1, 1), add.s(1, 1)], total.s())
    ),
    group_with_link=lambda n: linked(group(add.s(1, 1), add.s(2, 2)), n.only()),
    group_with_linked_members=lambda n: group(
        linked(add.s(1, 1), n.value("a")), linked(add.s(2, 2), n.value("b"))
    ),
    group_with_errback=lambda n: errs(group(fail.s(), add.s(1, 1)), n.error()),
    group_with_errback_and_failing_last=lambda n: errs(group(add.s(1, 1), fail.s()), n.sent()),
    group_that_fails_twice=lambda n: errs(group(fail.s(), fail.s()), n.error()),
    group_with_errbacks_of_members=lambda n: group(
        errs(fail.s(), n.error("a")), errs(add.s(1, 1), n.error("b"))
    ),
    group_with_empty_chain=lambda n: group(add.s(1, 1), chain(add.s(2, 2))),
    group_frozen=lambda n: frozen(group(add.s(1, 2), add.s(3, 4))),
    group_stored=lambda n: stored(group(add.s(1, 2), chain(add.s(3, 4), add.s(5)))),
    group_stamped=lambda n: stamped(group(stamps.s(), stamps.s())),
    # --- chains with groups ---------------------------------------------------------------
    chain_ending_in_group=lambda n: chain(add.s(1, 1), group(add.s(2), add.s(3))),
    chain_led_by_group=lambda n: chain(group(add.s(1, 1), add.s(2, 2)), total.s()),
    chain_with_group_midway=lambda n: chain(
        add.s(1, 1), group(add.s(2), add.s(3)), total.s(), add.s(4)
    ),
    chain_of_groups=lambda n: chain(
        group(add.s(1, 1), add.s(2, 2)), total.s(), group(add.s(3), add.s(4)), total.s()
    ),
    chain_of_group_after_group=lambda n: chain(
        group(same.s(1), same.s(2)), group(total.s(), called.s()), called.s()
    ),
    chain_with_group_of_one=lambda n: chain(same.s(1), group([add.s(2)]), called.s()),
    chain_with_chain_in_group=lambda n: chain(
        same.s(1), group(chain(add.s(2), add.s(3)), add.s(4)), total.s()
    ),
    chain_with_nested_groups=lambda n: chain(
        same.s(1), group(group(add.s(1), add.s(2)), group(add.s(3))), called.s()
    ),
    chain_with_chain_led_by_group=lambda n: chain(
        same.s(1), chain(group(add.s(1), add.s(2)), total.s()), add.s(3)
    ),
    chain_with_empty_group_behind=lambda n: chain(add.s(1, 1), group(), add.s(2)),
    chain_with_empty_group_first=lambda n: chain(group(), add.s(1, 1)),
    chain_with_immutable_behind_group=lambda n: chain(
        group(add.s(1, 1), add.s(2, 2)), number.si(), add.s(1)
    ),
    chain_of_wide_groups=lambda n: chain(
        group(add.s(i, i) for i in range(30)),
        total.s(),
        group(add.s(i) for i in range(30)),
        total.s(),
    ),
    chain_with_group_that_notes=lambda n: chain(
        n.only("first"),
        group(n.only("side"), n.only("side")),
        n.only("between"),
        group(n.only("side 2"), n.only("side 2")),
        n.only("last"),
    ),
    chain_with_errback_and_group=lambda n: errs(
        chain(group(fail.s(), add.s(1, 1)), total.s()), n.error()
    ),
    chain_with_errback_of_body=lambda n: chain(
        group(fail.s(), add.s(1, 1)), errs(total.s(), n.error())
    ),
    chain_with_errback_ending_in_group=lambda n: errs(
        chain(same.s(1), group(fail.s(), add.s(1))), n.error()
    ),
    chain_with_group_frozen=lambda n: frozen(
        chain(same.s(1), group(add.s(1), add.s(2)), total.s())
    ),
    chain_with_group_stored=lambda n: stored(
        chain(same.s(1), group(add.s(1), add.s(2)), total.s())
    ),
    chain_with_group_stamped=lambda n: stamped(chain(group(stamps.s(), stamps.s()), called.s())),
    # --- chords ---------------------------------------------------------------------------
    chord_=lambda n: chord([add.s(1, 1), add.s(2, 2)], total.s()),
    chord_of_generator=lambda n: chord((add.s(i, i) for i in range(9)), called.s()),
    chord_of_group=lambda n: chord(group(add.s(1, 1), add.s(2, 2)), total.s()),
    chord_of_one=lambda n: chord([add.s(1, 1)], called.s()),
    chord_of_signature=lambda n: chord(add.s(1, 1), called.s()),
    chord_called=lambda n: chord([add.s(1, 1), add.s(2, 2)], called.s("x", y=1)),
    chord_with_immutable_body=lambda n: chord([add.s(1, 1)], number.si()),
    chord_with_chain_for_body=lambda n: chord([add.s(1, 1)], chain(total.s(), add.s(3))),
    chord_with_group_for_body=lambda n: chord([add.s(1, 1)], group(total.s(), called.s())),
    chord_with_chord_for_body=lambda n: chord(
        [same.s(1)], chord([total.s(), called.s()], called.s())
    ),
    chord_in_chord=lambda n: chord(
        [chord([add.s(1, 1), add.s(2, 2)], total.s()), add.s(3, 3)], total.s()
    ),
    chord_in_chord_in_chord=lambda n: chord(
        [chord([chord([add.s(1, 1)], total.s()), same.s(1)], total.s()), same.s(2)], called.s()
    ),
    chord_with_chains=lambda n: chord([chain(add.s(1, 1), add.s(2)), same.s(3)], total.s()),
    chord_with_group_in_header=lambda n: chord(
        [group(add.s(1, 1), add.s(2, 2)), same.s(3)], deep_total.s()
    ),
    chord_in_chain=lambda n: chain(same.s(1), chord([add.s(1), add.s(2)], total.s()), add.s(3)),
    chord_with_arguments=lambda n: given(chord([add.s(1), add.si(2, 2)], total.s()), 4),
    chord_piped=lambda n: chord([add.s(1, 1)], total.s()) | add.s(1) | group(add.s(2), add.s(3)),
    chords_in_chain=lambda n: chain(
        chord([same.s(1), same.s(2)], total.s()), chord([add.s(1), add.s(2)], total.s())
    ),
    chord_with_empty_header=lambda n: chord([], called.s()),
    chord_with_empty_header_in_chain=lambda n: chain(same.s(1), chord([], called.s()), called.s()),
    chord_with_empty_header_and_chain=lambda n: chord([], chain(called.s(), called.s())),
    chord_with_empty_group=lambda n: chord(group(), called.s()),
    chord_with_link=lambda n: linked(chord([same.s(1)], total.s()), n.value()),
    chord_with_linked_body=lambda n: chord([same.s(1)], linked(total.s(), n.value())),
    chord_with_linked_header=lambda n: chord(
        [linked(same.s(1), n.value("a")), linked(same.s(2), n.value("b"))], total.s()
    ),
    chord_that_fails=lambda n: chord([fail.s(), same.s(1)], n.value("never")),
    chord_with_errback=lambda n: errs(chord([fail.s(), same.s(1)], total.s()), n.error()),
    chord_with_errback_sent=lambda n: errs(chord([fail.s(), same.s(1)], total.s()), n.sent()),
    chord_with_immutable_errback=lambda n: errs(chord([fail.s()], total.s()), n.only()),
    chord_that_fails_twice=lambda n: errs(chord([fail.s(), fail.s()], total.s()), n.error()),
    chord_with_failing_body=lambda n: errs(chord([same.s(1)], fail.s()), n.error()),
    chord_with_errback_of_body=lambda n: chord([fail.s()], errs(total.s(), n.error())),
    chord_with_errback_of_header=lambda n: chord([errs(fail.s(), n.error())], total.s()),
    chord_with_errback_and_chain=lambda n: errs(
        chord([chain(same.s(1), fail.s()), same.s(2)], total.s()), n.error()
    ),
    chord_with_errback_and_chain_body=lambda n: errs(
        chord([fail.s(), same.s(1)], chain(total.s(), same.s())), n.error()
    ),
    chord_with_errback_and_group_body=lambda n: errs(
        chord([fail.s(), same.s(1)], group(total.s(), called.s())), n.sent()
    ),
    chord_with_errback_and_failing_chain_body=lambda n: errs(
        chord([same.s(1)], chain(total.s(), fail.s())), n.error()
    ),
    chord_with_errback_that_retries=lambda n: errs(
        chord([again.s(1), same.s(2)], total.s()), n.error("never")
    ),
    chord_with_errback_in_chord=lambda n: errs(
        chord([errs(chord([fail.s()], total.s()), n.error("in")), same.s(1)], total.s()),
        n.error("out"),
    ),
    chord_with_errback_around_chord=lambda n: errs(
        chord([chord([fail.s()], total.s()), same.s(1)], total.s()), n.error()
    ),
    chord_with_errback_of_body_around_chord=lambda n: chord(
        [chord([fail.s(), same.s(2)], total.s()), same.s(1)], errs(total.s(), n.error())
    ),
    chord_with_errback_of_body_around_failing_body=lambda n: chord(
        [chord([same.s(1)], fail.s()), same.s(1)], errs(total.s(), n.error())
    ),
    chord_with_errback_of_body_around_chain_with_chord=lambda n: chord(
        [chain(chord([fail.s(), same.s(2)], total.s()), same.s()), same.s(1)],
        errs(total.s(), n.error()),
    ),
    chord_with_errback_of_body_around_chain_with_group=lambda n: chord(
        [chain(same.s(1), group(fail.s(), same.s()), total.s()), same.s(1)],
        errs(total.s(), n.error()),
    ),
    chord_with_errback_and_chord_for_body=lambda n: errs(
        chord([fail.s()], chord([same.s()], total.s())), n.error()
    ),
    chord_with_errback_of_first_of_body=lambda n: chord(
        [fail.s()], chain(errs(total.s(), n.error("a")), errs(same.s(), n.error("never")))
    ),
    chord_with_errbacks_in_group_for_body=lambda n: chord(
        [fail.s()], group(errs(total.s(), n.error("a")), errs(same.s(), n.sent("b")))
    ),
    chord_set_link_error=lambda n: chord([fail.s(), same.s(1)], total.s()).set(
        link_error=[n.error()]
    ),
    chord_set_link=lambda n: chord([same.s(1)], total.s()).set(link=[n.value()]),
    chain_with_errback_around_chord_with_chord=lambda n: errs(
        chain(same.s(1), chord([chord([fail.s()], total.s()), same.s()], total.s())), n.error()
    ),
    group_with_errback_of_chord=lambda n: errs(
        group(chord([fail.s()], total.s()), same.s(1)), n.error()
    ),
    chain_with_errback_and_group_after_group=lambda n: errs(
        chain(group(fail.s(), same.s(1)), group(total.s(), called.s())), n.sent()
    ),
    chain_with_group_of_one_stored=lambda n: stored(
        chain(same.s(1), group([add.s(2)]), called.s())
    ),
    chord_with_errback_in_chain=lambda n: chain(
        same.s(1), errs(chord([fail.s(), add.s(1)], total.s()), n.error()), same.s()
    ),
    chords_with_errback_in_chain=lambda n: errs(
        chain(chord([same.s(1)], total.s()), chord([fail.s()], total.s()), same.s()), n.error()
    ),
    chords_with_errbacks_in_group=lambda n: group(
        errs(chord([fail.s()], total.s()), n.error("a")),
        errs(chord([fail.s()], total.s()), n.error("b")),
    ),
    chord_frozen=lambda n: frozen(chord([add.s(1, 1), add.s(2, 2)], total.s())),
    chord_stored=lambda n: stored(chord([add.s(1, 1), add.s(2, 2)], total.s())),
    chord_stamped=lambda n: stamped(chord([stamps.s(), stamps.s()], called.s())),
    chord_body_stamped=lambda n: stamped(chord([same.s(1)], stamps.s())),
    chord_wide=lambda n: chord([add.s(i, i) for i in range(60)], total.s()),
    chord_with_retries=lambda n: chord([again.s(1), again.s(2, times=2)], total.s()),
    chord_that_adds=lambda n: chord([adds_to_chord.s([1, 2], 10)], total.s()),
    # --- maps and chunks ------------------------------------------------------------------
    map_=lambda n: same.map([1, 2, 3]),
    starmap=lambda n: add.starmap([(1, 2), (3, 4)]),
    chunks=lambda n: add.chunks([(i, i) for i in range(7)], 3),
    chunks_group=lambda n: add.chunks([(i, i) for i in range(7)], 3).group(),
    chunks_and_chord=lambda n: add.chunks([(i, i) for i in range(4)], 2).group() | called.s(),
    maps_in_group=lambda n: group(same.map([1, 2]), add.starmap([(1, 2)])),
    map_in_chain=lambda n: chain(same.map([1, 2]), total.s(), add.s(1)),
    map_with_link=lambda n: linked(same.map([1, 2]), n.value()),
    # --- replace --------------------------------------------------------------------------
    replaced=lambda n: add_replaced.s(1, 2),
    replaced_in_chain=lambda n: chain(same.s(1), add_replaced.s(2), add.s(3)),
    replaced_in_header=lambda n: chord([add_replaced.s(1, 2), same.s(3)], total.s()),
    replaced_in_body=lambda n: chord([same.s(1)], replaced_by_chain.s()),
    replaced_in_group=lambda n: group(add_replaced.s(1, 2), same.s(3)),
    replaced_by_chain_=lambda n: replaced_by_chain.s(5),
    replaced_by_chain_first=lambda n: chain(replaced_by_chain.s(5), called.s()),
    replaced_by_chain_midway=lambda n: chain(same.s(1), replaced_by_chain.s(), called.s()),
    replaced_by_chain_last=lambda n: chain(same.s(1), replaced_by_chain.s()),
    replaced_by_chain_in_header=lambda n: chord(
        [replaced_by_chain.s(1), chain(same.s(2), replaced_by_chain.s())], called.s()
    ),
    replaced_by_chain_with_link=lambda n: linked(replaced_by_chain.s(5), n.value()),
    replaced_by_noted_chain_=lambda n: replaced_by_noted_chain.s(5, n.tag),
    replaced_by_noted_chain_with_link=lambda n: linked(
        replaced_by_noted_chain.s(5, n.tag), n.value("outer link")
    ),
    replaced_by_failing_chain_=lambda n: replaced_by_failing_chain.s(5, n.tag),
    replaced_by_failing_chain_with_errback=lambda n: errs(
        replaced_by_failing_chain.s(5, n.tag), n.error("outer error")
    ),
    replaced_by_failing_chain_in_header=lambda n: errs(
        chord([replaced_by_failing_chain.s(5, n.tag), same.s(1)], total.s()), n.error()
    ),
    replaced_by_nothing_=lambda n: chain(same.s(1), replaced_by_nothing.s()),
    replaced_by_group_=lambda n: chain(same.s([1, 2, 3]), replaced_by_group.s(10)),
    replaced_by_group_in_chain=lambda n: chain(
        same.s([1, 2, 3]), replaced_by_group.s(10), called.s()
    ),
    replaced_by_chord_=lambda n: chain(same.s([1, 2]), replaced_by_chord.s(1), add.s(5)),
    replaced_by_chain_with_group_=lambda n: chain(
        same.s(1), replaced_by_chain_with_group.si(), called.s()
    ),
    replaced_in_replaced=lambda n: outer_replaced.s(n.tag),
    fail_replaced_=lambda n: errs(fail_replaced.s(), n.error()),
    fail_replaced_in_chain=lambda n: errs(chain(same.s(1), fail_replaced.s()), n.error()),
    fail_replaced_in_header=lambda n: errs(
        chord([fail_replaced.s(), same.s(1)], total.s()), n.error()
    ),
    replaced_stamped=lambda n: stamped(chain(add_replaced.s(1, 2), stamps.s())),
    # --- linking something stamped --------------------------------------------------------
    link_stamped=lambda n: linked(same.s(1), stamped(n.value())),
    errback_stamped=lambda n: errs(fail.s(), stamped(n.sent())),
    stamped_with_link=lambda n: stamped(linked(same.s(1), n.value())),
)
