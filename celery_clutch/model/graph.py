"""Drawings of a plan: Mermaid, Graphviz, text, HTML. Pure: a plan in, text out.

Every format takes the state of each job by address, where it is known, to colour the drawing, and
draws the branches of a parallel step that is wider than *wide* once for each shape that they have.
Runs that were nested in a job are drawn inside it: *nested* has their titles and plans by the
address of the job. What is in the first of them has addresses such as ``"1~0.2"``.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib import resources
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

from .names import label as named
from .names import option
from .names import printable as printable
from .plan import EACH, Choose, Job, Map, Node, Parallel, Series, children, join
from .unfold import Unfolded

T = TypeVar("T")
States = Mapping[str, str]
Nested = Mapping[str, Sequence[tuple[str, Series]]]
NOTHING: Nested = MappingProxyType({})

WIDE = 10
"""Branches that are drawn one by one."""

COLOURS = {
    "dead": "#d1242f",
    "failing": "#bf8700",
    "running": "#0969da",
    "waiting": "#8c959f",
    "cancelled": "#57606a",
    "tolerated": "#bc4c00",
    "skipped": "#afb8c1",
    "done": "#1a7f37",
}
"""The states of a job, the one that matters most first, and the colours they are drawn in.

``tolerated``: it is dead, and the run goes on without it; ``skipped``: it will not run.
"""
OVER = frozenset(("done", "skipped", "tolerated"))
"""The states of jobs that nothing waits for."""
ROW = "100em"
"""How wide a row of branches gets in HTML."""
TIMES = "\u00d7"


@dataclass(frozen=True, slots=True)
class Box:
    """Something to draw: a job, or the boxes of a series or parallel.

    Attributes:
        at: the address of the (first) node that it stands for.
        kind: see `kind_of`; ``more`` for what is left out.
        label: for people; one line of any characters that can be printed.
        states: how many of its jobs are in each state; empty where that is not known.
    """

    at: str
    kind: str
    label: str
    states: Counter[str]
    inner: tuple[Box, ...] = ()


def mermaid(
    plan: Series,
    title: str = "",
    states: States | None = None,
    wide: int = WIDE,
    nested: Nested = NOTHING,
) -> str:
    """A flowchart for Mermaid, as GitHub and GitLab show it in a ``mermaid`` block."""
    root = box(plan, states, wide, nested)
    lines = (
        ["---", f"title: {json.dumps(printable(title), ensure_ascii=False)}", "---"]
        if title
        else []
    )
    lines += ["flowchart TD", *_mermaid(root, "  ")]
    for state in sorted(filter(None, {overall(each.states) for each in _walk(root)})):
        lines.append(f"  classDef {state} stroke:{COLOURS[state]},stroke-width:3px")
    return "\n".join(lines)


def dot(
    plan: Series,
    title: str = "",
    states: States | None = None,
    wide: int = WIDE,
    nested: Nested = NOTHING,
) -> str:
    """A digraph for Graphviz."""
    root = box(plan, states, wide, nested)
    lines = [
        "digraph clutch {",
        f'  graph [label="{_dot_text(title)}", labelloc=t, compound=true, fontname="sans-serif"]',
        '  node [shape=box, style=rounded, fontname="sans-serif"]',
    ]
    return "\n".join([*lines, *_dot(root, "  "), "}"])


def text(
    plan: Series,
    title: str = "",
    states: States | None = None,
    wide: int = WIDE,
    nested: Nested = NOTHING,
) -> str:
    """A tree for terminals."""
    root = box(plan, states, wide, nested)
    rows = outline(root.inner, lambda each: each.inner)
    tree = [f"{prefix}{_caption(each, each.kind == 'job')}" for prefix, each in rows]
    return "\n".join([printable(title) or "Clutch", *tree])


def html(plan: Series, title: str, states: States | None = None) -> str:
    """A piece of HTML for notebooks: no scripts, nothing from the network, styles of its own."""
    head = f'<div style="font-weight:600;margin:4px">{escape(printable(title))}</div>'
    drawing = _html(box(plan, states, WIDE))
    return f'<div style="font:13px/1.5 sans-serif;overflow:auto">{head}{drawing}</div>'


def page(
    plan: Series,
    title: str,
    states: States | None = None,
    wide: int = WIDE,
    nested: Nested = NOTHING,
) -> str:
    """A page of HTML, moved with the mouse or the arrow keys, zoomed with the wheel or ``+`` and
    ``-``; ``0`` shows all of it. Nothing is loaded from the network, and no script runs but its
    own."""
    name = escape(printable(title))
    drawing = _html(box(plan, states, wide, nested))
    empty = (resources.files(__package__) / "page.html").read_text("utf-8")
    script = empty.partition("<script>")[2].partition("</script>")[0]
    empty = empty.replace("<!--policy-->", _policy(script))
    # Names are escaped, so that none can be one of these.
    return empty.replace("<!--title-->", name).replace("<!--drawing-->", drawing)


def _policy(script: str) -> str:
    """What a browser is to let a page do: run *script*, and show styles of its own."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def box(
    plan: Series, states: States | None = None, wide: int = WIDE, nested: Nested = NOTHING
) -> Box:
    """*plan* as what is to be drawn."""
    return _box(plan, [""], "", _Look(states, wide, nested))


@dataclass(frozen=True, slots=True)
class _Look:
    """How a plan is drawn."""

    states: States | None
    wide: int
    nested: Nested


def overall(states: Mapping[str, int]) -> str:
    """The state of a whole that has so many parts in each; "" of nothing."""
    found = {state for state, count in states.items() if count}
    if found - OVER == {"waiting"} and found & OVER:
        return "running"
    if found == {"skipped", "done"}:
        return "done"
    return next((state for state in COLOURS if state in found), "")


def counts(states: Mapping[str, int]) -> str:
    """``"2 done, 1 waiting"``."""
    return ", ".join(f"{states[s]:,} {s}" for s in reversed(COLOURS) if states.get(s))


def outline(
    items: Sequence[T], below: Callable[[T], Sequence[T]], indent: str = ""
) -> Iterator[tuple[str, T]]:
    """Every one of *items* and of what is *below* them, with the lines to draw before it."""
    for index, item in enumerate(items):
        last = index == len(items) - 1
        yield indent + ("└─ " if last else "├─ "), item
        yield from outline(below(item), below, indent + ("   " if last else "│  "))


def _box(node: Node, at: Sequence[str], shown: str, look: _Look) -> Box:
    """The nodes at the addresses *at*, which are like *node*, in one box; they go by *shown*."""
    states, wide = look.states, look.wide
    what = node.task if isinstance(node, Job) else kind_of(node)
    label = named(node.name if len(at) == 1 else "", shown, what) + bounds(node)
    if isinstance(node, Job):
        found = Counter() if states is None else Counter(states.get(a, "waiting") for a in at)
        runs = look.nested.get(at[0], ()) if len(at) == 1 else ()
        boxes = [_nested_box(f"{at[0]}~{i}", *run, look) for i, run in enumerate(runs)]
        return Box(at[0], "parallel" if boxes else "job", printable(label), found, tuple(boxes))
    inner = []
    groups = list(_groups(node, wide))
    keys = option_labels(node)
    for number, (alike, branch) in enumerate(groups[:wide]):
        star = str(alike[0]) if len(alike) == 1 else "*"
        places = [join(address, index) for address in at for index in alike]
        name = f"{shown}.{star}" if shown else star
        each = _box(branch, places, name, look)
        times = f" {TIMES} {len(alike):,}" if len(alike) > 1 else ""
        key = f"{keys[number]}: " if keys and keys[number] else ""
        inner.append(Box(each.at, each.kind, key + each.label + times, each.states, each.inner))
    if left := [index for alike, _ in groups[wide:] for index in alike]:
        more = f"… and {len(left):,} more"
        inner.append(Box(join(at[0], left[0]), "more", more, Counter()))
    if isinstance(node, Unfolded) and node.added:
        inner.append(Box(join(at[0], "added"), "more", added_label(node.added), Counter()))
    total: Counter[str] = Counter()
    for each in inner:
        total.update(each.states)
    return Box(at[0], kind_of(node), printable(label), total, tuple(inner))


def _nested_box(at: str, title: str, root: Series, look: _Look) -> Box:
    found = _box(root, [at], "", look)
    return Box(at, found.kind, printable(f"nested {title}"), found.states, found.inner)


def option_labels(node: Node) -> list[str]:
    """What is said before the children of a choice, each of them; nothing of other nodes."""
    if not isinstance(node, Choose) or node.truth:
        return []
    return ["", *(option(key) for key, _ in node.branches())]


def added_label(count: int) -> str:
    """Branches that were added to a parallel."""
    return "1 branch added" if count == 1 else f"{count:,} branches added"


def bounds(node: Node) -> str:
    """What a parallel or map is bounded by, behind its label."""
    if not isinstance(node, (Parallel, Map)):
        return ""
    found = f", {node.limit:,} at a time" if node.limit else ""
    if node.need:
        found += f", {node.need:,} needed"
    if node.allow is True:
        found += ", all may fail"
    elif node.allow:
        share = f"{node.allow:.0%}" if isinstance(node.allow, float) else f"{node.allow:,}"
        found += f", {share} may fail"
    return found


def _groups(node: Node, wide: int) -> Iterable[tuple[list[int | str], Node]]:
    """The children of *node*, those alike together where it is a wide parallel."""
    if isinstance(node, Map):
        return [([EACH], node.branch)]
    below = children(node)
    if not isinstance(node, Parallel) or len(below) <= wide:
        return [([index], child) for index, child in enumerate(below)]
    found: dict[object, tuple[list[int | str], Node]] = {}
    before: Node | None = None
    alike: list[int | str] = []
    for index, child in enumerate(below):
        if child is not before:  # those of a map are one object
            alike = found.setdefault(_shape(child), ([], child))[0]
            before = child
        alike.append(index)
    return found.values()


def _shape(node: Node) -> object:
    if isinstance(node, Job):
        return node.task
    return kind_of(node), *option_labels(node), *map(_shape, children(node))


def kind_of(node: Node) -> str:
    """``job``, ``series``, ``parallel``, ``map``, ``choose`` or ``when``."""
    if isinstance(node, Unfolded):
        return "map" if node.is_map else "parallel"
    if isinstance(node, Choose) and node.truth:
        return "when"
    return type(node).__name__.lower()


def _walk(box: Box) -> Iterator[Box]:
    yield box
    for each in box.inner:
        yield from _walk(each)


def _caption(box: Box, alone: bool = False) -> str:
    """The label, and what a colour cannot say; the state of a job *alone*, too."""
    if box.states.total() > 1:
        return f"{box.label}  {counts(box.states)}"
    return f"{box.label}  {overall(box.states)}" if alone and box.states else box.label


def _name(box: Box) -> str:
    at = box.at.replace(EACH, "each").replace("+", "p")
    return "n" + at.replace(".", "_").replace("~", "_")


def _mermaid(box: Box, pad: str) -> Iterator[str]:
    for each in box.inner:
        state = overall(each.states)
        label = _mermaid_text(_caption(each))
        if not each.inner:
            yield f'{pad}{_name(each)}["{label}"]' + (f":::{state}" if state else "")
            continue
        yield f'{pad}subgraph {_name(each)}["{label}"]'
        yield from _mermaid(each, pad + "  ")
        yield f"{pad}end"
    for one, other in _edges(box):
        yield f"{pad}{_name(one)} --> {_name(other)}"


def _edges(box: Box) -> Iterable[tuple[Box, Box]]:
    """What follows what in *box*."""
    if box.kind == "series":
        return pairwise(box.inner)
    if box.kind in ("choose", "when"):
        return ((box.inner[0], option) for option in box.inner[1:])
    return ()


def _mermaid_text(label: str) -> str:
    return "".join(c if c.isalnum() or c in " ._-,*" else f"#{ord(c)};" for c in label)


def _dot(box: Box, pad: str) -> Iterator[str]:
    for each in box.inner:
        label = f'label="{_dot_text(_caption(each))}"'
        state = overall(each.states)
        colour = f', color="{COLOURS[state]}", penwidth=2' if state else ""
        if not each.inner:
            yield f"{pad}{_name(each)} [{label}{colour}]"
            continue
        yield f"{pad}subgraph cluster_{_name(each)} {{"
        yield f"{pad}  graph [{label}{colour}]"
        yield from _dot(each, pad + "  ")
        yield f"{pad}}}"
    for one, other in _edges(box):
        ends = [f"ltail=cluster_{_name(one)}"] * bool(one.inner)
        ends += [f"lhead=cluster_{_name(other)}"] * bool(other.inner)
        # An edge joins jobs, and is cut where it crosses the cluster around them.
        attributes = f" [{', '.join(ends)}]" if ends else ""
        yield f"{pad}{_name(_leaf(one, -1))} -> {_name(_leaf(other, 0))}{attributes}"


def _dot_text(label: str) -> str:
    return printable(label).replace("\\", "\\\\").replace('"', '\\"')


def _leaf(box: Box, index: int) -> Box:
    return _leaf(box.inner[index], index) if box.inner else box


def _html(box: Box) -> str:
    series = box.kind in ("series", "choose", "when")
    arrow = '<div style="text-align:center;line-height:1">↓</div>' if series else ""
    # Branches of what is wide stand in several rows.
    row = f"display:flex;align-items:center;flex-flow:row wrap;max-width:{ROW}"
    inside = [*map(_html, box.inner)]
    if box.kind in ("choose", "when"):
        options = "".join(inside[1:])
        inside = [inside[0], f'<div style="{row}">{options}</div>']
    inner = arrow.join(inside)
    flow = "display:flex;align-items:center;flex-flow:column" if series else row
    if not box.at:
        return f'<div style="{flow};width:max-content">{inner}</div>'
    colour = COLOURS.get(overall(box.states), COLOURS["waiting"])
    label = escape(_caption(box, box.kind == "job"))
    if not box.inner:
        style = f"border:1px solid {colour};border-left-width:5px;border-radius:4px"
        return f'<div style="{style};padding:1px 8px;margin:4px;width:max-content">{label}</div>'
    head = f'<div style="opacity:.7;margin:0 6px">{label}</div>'
    frame = f"border:1px dashed {colour};border-radius:6px;padding:2px;margin:4px"
    return f'<div style="{frame}">{head}<div style="{flow}">{inner}</div></div>'
