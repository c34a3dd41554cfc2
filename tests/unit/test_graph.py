"""Drawings: what is in them, and that no name can break them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_clutch.model import graph, plan
from celery_clutch.model.plan import Job
from celery_clutch.model.unfold import unfold

from . import strategies

PLAN = plan.series(
    [
        Job("shop.fetch"),
        plan.parallel([Job("shop.resize"), plan.series([Job("shop.scan"), Job("shop.report")])]),
        Job("shop.archive"),
    ]
)
STATES = {"0": "done", "1.0": "running", "1.1.0": "dead"}
FORMATS = [graph.mermaid, graph.dot, graph.text]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_mermaid() -> None:
    assert graph.mermaid(PLAN, 'a "title"', STATES).splitlines() == [
        "---",
        'title: "a \\"title\\""',
        "---",
        "flowchart TD",
        '  n0["0 shop.fetch"]:::done',
        '  subgraph n1["1 parallel  1 waiting, 1 running, 1 dead"]',
        '    n1_0["1.0 shop.resize"]:::running',
        '    subgraph n1_1["1.1 series  1 waiting, 1 dead"]',
        '      n1_1_0["1.1.0 shop.scan"]:::dead',
        '      n1_1_1["1.1.1 shop.report"]:::waiting',
        "      n1_1_0 --> n1_1_1",
        "    end",
        "  end",
        '  n2["2 shop.archive"]:::waiting',
        "  n0 --> n1",
        "  n1 --> n2",
        "  classDef dead stroke:#d1242f,stroke-width:3px",
        "  classDef done stroke:#1a7f37,stroke-width:3px",
        "  classDef running stroke:#0969da,stroke-width:3px",
        "  classDef waiting stroke:#8c959f,stroke-width:3px",
    ]


def test_dot() -> None:
    assert graph.dot(PLAN, "the title").splitlines() == [
        "digraph clutch {",
        '  graph [label="the title", labelloc=t, compound=true, fontname="sans-serif"]',
        '  node [shape=box, style=rounded, fontname="sans-serif"]',
        '  n0 [label="0 shop.fetch"]',
        "  subgraph cluster_n1 {",
        '    graph [label="1 parallel"]',
        '    n1_0 [label="1.0 shop.resize"]',
        "    subgraph cluster_n1_1 {",
        '      graph [label="1.1 series"]',
        '      n1_1_0 [label="1.1.0 shop.scan"]',
        '      n1_1_1 [label="1.1.1 shop.report"]',
        "      n1_1_0 -> n1_1_1",
        "    }",
        "  }",
        '  n2 [label="2 shop.archive"]',
        "  n0 -> n1_0 [lhead=cluster_n1]",
        "  n1_1_1 -> n2 [ltail=cluster_n1]",
        "}",
    ]
    assert '"0 shop.fetch", color="#1a7f37"' in graph.dot(PLAN, states=STATES)


def test_text() -> None:
    assert graph.text(PLAN, "photos", STATES).splitlines() == [
        "photos",
        "├─ 0 shop.fetch  done",
        "├─ 1 parallel  1 waiting, 1 running, 1 dead",
        "│  ├─ 1.0 shop.resize  running",
        "│  └─ 1.1 series  1 waiting, 1 dead",
        "│     ├─ 1.1.0 shop.scan  dead",
        "│     └─ 1.1.1 shop.report  waiting",
        "└─ 2 shop.archive  waiting",
    ]


def test_branches_of_a_wide_parallel_are_drawn_once_for_each_shape() -> None:
    pair = plan.series([Job("a"), Job("b")])
    wide = plan.series([plan.parallel([*[pair] * 2999, Job("c")])])
    states = {f"0.{index}.0": "done" for index in range(2990)}
    assert graph.text(wide, "w", states).splitlines() == [
        "w",
        "└─ 0 parallel  2,990 done, 3,009 waiting",
        f"   ├─ 0.* series {graph.TIMES} 2,999  2,990 done, 3,008 waiting",
        "   │  ├─ 0.*.0 a  2,990 done, 9 waiting",
        "   │  └─ 0.*.1 b  2,999 waiting",
        "   └─ 0.2999 c  waiting",
    ]
    for draw in FORMATS:
        assert len(draw(wide, "w", states).splitlines()) < 20
        assert len(draw(wide, "w", states, 10_000).splitlines()) > 6000


@pytest.mark.parametrize("draw", FORMATS)
def test_of_very_many_shapes_some_are_drawn(draw: Any) -> None:
    drawn = draw(plan.series([plan.parallel(Job(f"task{i}") for i in range(500))]))
    assert "task9" in drawn
    assert "task10" not in drawn
    assert "and 490 more" in re.sub(r"#\d+;", "", drawn)


def test_a_parallel_that_runs_few_branches_at_a_time_says_so() -> None:
    drawn = graph.text(plan.series([plan.parallel([Job("a"), Job("b"), Job("c")], limit=2)]))
    assert drawn.splitlines()[1] == "└─ 0 parallel, 2 at a time"


def test_an_empty_plan_can_be_drawn() -> None:
    empty = plan.series([])
    assert [graph.mermaid(empty), graph.text(empty)] == ["flowchart TD", "Clutch"]
    assert graph.dot(empty).endswith("}")
    assert tags(graph.html(empty, "nothing")) == {"div"}


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ({}, ""),
        ({"done": 3}, "done"),
        ({"done": 1, "waiting": 1}, "running"),
        ({"done": 1, "running": 1}, "running"),
        ({"done": 1, "failing": 1, "running": 1}, "failing"),
        ({"done": 1, "failing": 1, "dead": 1}, "dead"),
        ({"done": 1, "cancelled": 1}, "cancelled"),
    ],
)
def test_the_state_of_a_whole(states: dict[str, int], state: str) -> None:
    assert graph.overall(states) == state


def tags(document: str) -> set[str]:
    """The HTML elements; fails where one is not closed."""
    found: list[str] = []
    around: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            assert [name for name, _ in attrs] == ["style"]
            found.append(tag)
            around.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert around.pop() == tag

    Parser().feed(document)
    assert not around
    return set(found)


@given(names, names)
def test_no_name_breaks_html(task: str, title: str) -> None:
    assert tags(graph.html(plan.series([Job(task), PLAN]), title, {"0": "done"})) == {"div"}


@given(names, names)
def test_no_name_breaks_mermaid(task: str, title: str) -> None:
    *_, line = graph.mermaid(plan.series([Job(task)]), title).splitlines()
    found = re.fullmatch(r'  n0\["((?:\w|[ ._,*-]|#\d+;)*)"\]', line)
    assert found
    label = re.sub(r"#(\d+);", lambda code: chr(int(code[1])), found[1])
    assert label == graph.printable(f"0 {task}")


@given(names, names)
def test_no_name_breaks_dot(task: str, title: str) -> None:
    quoted = r'"((?:[^"\\]|\\.)*)"'
    _, head, _, line, end = graph.dot(plan.series([Job(task)]), title).splitlines()
    for text, expected in ((head, title), (line, f"0 {task}")):
        found = re.search(rf"\[label={quoted}[,\]]", text)
        assert found
        assert re.sub(r"\\(.)", r"\1", found[1]) == graph.printable(expected)
    assert end == "}"


@given(names)
def test_what_is_printable_is_one_line_and_no_command(value: str) -> None:
    assert graph.printable(value).isprintable()


@given(strategies.plans())
def test_every_job_is_drawn_once(root: plan.Series) -> None:
    jobs = [address for address, node in plan.walk(root) if isinstance(node, Job)]
    states = {address: "done" for address in jobs}
    drawn = graph.text(root, "title", states, 10_000).splitlines()[1:]
    found = [line.lstrip("│├└─ ").split(" ")[0] for line in drawn if line.endswith("  done")]
    assert [address for address in found if address in states] == jobs
    for draw in (graph.mermaid, graph.dot):
        text = draw(root, "", states, 10_000)
        assert re.findall(r'(?:\[|label=)"([\d.]+) [a-z]', text) == [
            at for at, _ in plan.walk(root)
        ]


@pytest.mark.parametrize(
    "name", ["<!--drawing-->", "DRAWING", "</script><script>alert(1)</script>"]
)
def test_no_name_breaks_the_page(name: str) -> None:
    drawn = graph.page(plan.series([Job(name), Job("shop.fetch")]), name)
    assert drawn.count("<script>") == drawn.count("</script>") == 1
    assert drawn.count("1 shop.fetch") == 1
    assert drawn.count("<!--") == 0


def test_a_browser_runs_no_script_but_that_of_the_page() -> None:
    drawn = graph.page(plan.series([Job("shop.fetch")]), "run")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', drawn)
    assert policy is not None
    directives = dict(each.split(" ", 1) for each in policy[1].split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", drawn, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=", drawn), "handlers in attributes would not be called"


def test_branches_of_a_wide_parallel_stand_in_rows() -> None:
    root = plan.series([plan.parallel([Job("shop.fetch")] * 60)])
    drawn = graph.page(root, "run", wide=100)
    assert drawn.count("shop.fetch") == 60
    assert f"flex-flow:row wrap;max-width:{graph.ROW}" in drawn


# --- choices and maps ---------------------------------------------------------------------------

HOSTILE = [
    "\x1b[2J",
    "<script>alert(1)</script>",
    'a"]; b',
    "]]\nend",
    "a\u202eb",
    "x" * 5000,
    "%",
    "",
]


def choice(*keys: str) -> plan.Series:
    options = tuple((json.dumps(key), Job("a")) for key in keys)
    return plan.series([plan.Choose(Job("route"), options, Job("b"))])


@pytest.mark.parametrize("key", HOSTILE)
def test_keys_of_choices_break_no_drawing(key: str) -> None:
    root = choice(key)
    for draw in (graph.mermaid, graph.dot, graph.text, graph.html, graph.page):
        drawn = draw(root, "")
        assert "\x1b" not in drawn and "\u202e" not in drawn
        assert "<script>alert" not in drawn or draw in (graph.dot, graph.text)
        assert len(drawn.splitlines()) == len(draw(choice("eu"), "").splitlines())
        assert len(drawn) < len(draw(choice("eu"), "")) + 500


def test_a_choice_is_drawn_with_its_keys() -> None:
    assert graph.text(choice("eu", "1", "else")) == "\n".join(
        [
            "Clutch",
            "└─ 0 choose",
            "   ├─ 0.0 route",
            "   ├─ eu: 0.1 a",
            '   ├─ "1": 0.2 a',
            '   ├─ "else": 0.3 a',
            "   └─ else: 0.4 b",
        ]
    )
    drawn = graph.mermaid(choice("eu"), "")
    assert "n0_0 --> n0_1" in drawn and "n0_0 --> n0_2" in drawn and "n0_1 -->" not in drawn


def test_a_map_is_drawn_once_until_it_is_known() -> None:
    root = plan.series([Job("a"), plan.Map(Job("b"), limit=2, allow=0.05, name="all")])
    assert graph.text(root).splitlines()[2:] == [
        "└─ all (1 map), 2 at a time, 5% may fail",
        "   └─ 1.% b",
    ]
    assert 'n1_each["1.#37; b"]' in graph.mermaid(root)
    found = unfold(root, {"1": 12}, {})
    assert graph.text(found).splitlines()[2:] == [
        "└─ all (1 map), 2 at a time, 5% may fail",
        f"   └─ 1.* b {graph.TIMES} 12",
    ]
