"""The command line, on an app with an embedded worker."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from celery.bin.base import CLIContext
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from celery_clutch import Clutch, ClutchResult, ClutchTask, State, parallel
from celery_clutch.compile import canvas
from celery_clutch.errors import ClutchFailed
from celery_clutch.extend.plugins import runtime
from celery_clutch.model.graph import TIMES
from celery_clutch.operate import cli
from celery_clutch.operate.cli.watching import TOP
from celery_clutch.runtime.leases import HOST
from celery_clutch.stores.memory import MemoryStore
from celery_clutch.testing import embedded

from .conftest import App
from .test_embedded import until


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of pytest-xdist are told of one."""
    monkeypatch.delenv("COLUMNS", raising=False)


class Shop:
    """An app, and its command line."""

    def __init__(self) -> None:
        self.app = App("shop", task_cls=ClutchTask, set_as_current=False)
        self.go_on = threading.Event()
        self.full = True

        @self.app.task(name="shop.fetch")
        def fetch(photo: Any) -> Any:
            return photo

        @self.app.task(name="shop.scan", bind=True)
        def scan(job: ClutchTask) -> str:
            if job.request.retries == 0:
                raise job.retry(exc=ConnectionError("the scanner\nis busy"), countdown=0)
            job.data["scanned"] = [1]
            return "clean"

        @self.app.task(name="shop.store")
        def store() -> str:
            if self.full:
                raise OSError("the shelf is full")
            return "stored"

        @self.app.task(name="shop.wait")
        def wait() -> str:
            assert self.go_on.wait(60)
            return "waited"

        @self.app.task(name="shop.publish", bind=True)
        def publish(job: ClutchTask) -> str:
            inner = Clutch(wait, parent=job, name="letters", id="inner")
            inner.engage()
            return "published"

        self.ended: list[tuple[str, str]] = []

        @self.app.task(name="shop.end")
        def end(status: dict[str, Any]) -> None:
            self.ended.append((status["id"], status["state"]))

        self.end = end
        self.fetch, self.scan, self.store, self.wait, self.publish = (
            fetch,
            scan,
            store,
            wait,
            publish,
        )

    def __call__(self, *args: str, code: int = 0, said: str | None = None) -> Result:
        """Run ``clutch ARGS``."""
        obj = CLIContext(self.app, no_color=True, workdir=None)
        result = CliRunner().invoke(cli.clutch, args, obj=obj, input=said)
        expected = result.exception is None or isinstance(result.exception, SystemExit)
        assert expected, result.exception
        assert result.exit_code == code, result.output
        return result

    def table(self, *args: str) -> list[dict[str, str]]:
        """What a command prints as a table, by the names of the columns."""
        head, *rows = self.lines(*args)
        names = head.split()
        starts = [head.index(name) for name in names] + [None]
        return [
            {name: row[a:b].strip() for name, a, b in zip(names, starts, starts[1:], strict=False)}
            for row in rows
        ]

    def lines(self, *args: str, code: int = 0) -> list[str]:
        return self(*args, code=code).output.splitlines()

    def json(self, *args: str) -> Any:
        return orjson.loads(self(*args).output)

    def succeeded(self, id: str = "good", **options: Any) -> ClutchResult:
        run = Clutch(self.fetch.s("a"), self.scan, name="sunset", id=id, app=self.app, **options)
        handle = run.engage()
        handle.get(timeout=30)
        return handle

    def failed(self) -> ClutchResult:
        wide = parallel(*[self.fetch.s(n) for n in range(30)], self.store)
        run = Clutch(wide, self.fetch.s("z"), name="shelf", id="bad", app=self.app).engage()
        with suppress(ClutchFailed):
            run.get(timeout=30)
        until(lambda: run.progress().done == 30, 30)
        return run

    def waiting(self, *after: Any, id: str = "slow", on_end: Any = None) -> ClutchResult:
        clutch = Clutch(self.wait, *after, name="slow one", id=id, on_end=on_end, app=self.app)
        run = clutch.engage()
        until(lambda: runtime(self.app).store.executions(run.id).get("0"), 30)
        return run


@pytest.fixture
def shop() -> Iterator[Shop]:
    shop = Shop()
    with embedded(shop.app):
        try:
            yield shop
        finally:
            shop.go_on.set()


# --- ls -----------------------------------------------------------------------------------------


def test_ls(shop: Shop) -> None:
    shop.succeeded(tags=["eu", "big"])
    shop.failed()
    head, bad, good = shop.lines("ls")
    assert head.split() == ["ID", "NAME", "STATE", "JOBS", "ENGAGED", "TOOK", "TAGS"]
    assert bad.startswith("bad   shelf   FAILED     30/32, 1 dead  ")
    assert good.startswith("good  sunset  SUCCEEDED  2/2 ")
    assert good.endswith("eu big")


def test_ls_json_is_one_object_a_line(shop: Shop) -> None:
    shop.succeeded(tags=["eu"])
    shop.succeeded(id="other")
    found = [orjson.loads(line) for line in shop.lines("ls", "--json")]
    assert [each["id"] for each in found] == ["other", "good"]
    status = shop.json("show", "good", "--json")
    assert found[1] == {key: status[key] for key in found[1]}


def test_ls_shows_what_still_runs_of_a_run_that_has_failed(shop: Shop) -> None:
    shop.succeeded()
    run = Clutch(parallel(shop.wait, shop.store), id="slow", app=shop.app).engage()
    until(lambda: run.state is State.FAILED and run.status().draining, 30)
    assert {row["ID"]: row["STATE"] for row in shop.table("ls")[:2]} == {
        "slow": "FAILED*",
        "good": "SUCCEEDED",
    }
    assert shop.lines("ls")[-1] == "* draining: jobs of it still run"
    found = [orjson.loads(line) for line in shop.lines("ls", "--json")]
    assert [(each["state"], each["draining"]) for each in found] == [
        ("FAILED", 1),
        ("SUCCEEDED", 0),
    ]
    shop.go_on.set()
    until(lambda: run.status().draining == 0, 30)
    assert [row["STATE"] for row in shop.table("ls")] == ["FAILED", "SUCCEEDED"]


def test_a_job_whose_process_has_died_does_not_drain(shop: Shop) -> None:
    run = Clutch(parallel(shop.wait, shop.store), id="slow", app=shop.app).engage()
    until(lambda: run.state is State.FAILED and run.status().draining, 30)
    store = runtime(shop.app).store
    store.renew([*store.owners()], -1.0)
    assert run.status().draining == 0
    shop.go_on.set()


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), ["bad", "other", "good"]),
        (("--limit", "2"), ["bad", "other"]),
        (("--state", "succeeded"), ["other", "good"]),
        (("--state", "CANCELLED"), []),
        (("--tag", "eu"), ["good"]),
        (("--name", "shelf"), ["bad"]),
        (("--newer", "1h"), ["bad", "other", "good"]),
        (("--older", "1.5h"), []),
        (("--older", "0", "--newer", "1w"), ["bad", "other", "good"]),
        (("--newer", "0s"), []),
    ],
)
def test_filters_of_ls(shop: Shop, options: tuple[str, ...], ids: list[str]) -> None:
    shop.succeeded(tags=["eu"])
    shop.succeeded(id="other")
    shop.failed()
    assert [orjson.loads(line)["id"] for line in shop.lines("ls", "--json", *options)] == ids


@pytest.mark.parametrize(
    "options", [("--older", "2x"), ("--older", "soon"), ("--state", "DONE"), ("--limit", "0")]
)
def test_ls_used_wrongly(shop: Shop, options: tuple[str, ...]) -> None:
    shop("ls", *options, code=2)


def test_ls_goes_through_all_pages(shop: Shop) -> None:
    for number in range(250):
        Clutch(id=f"run-{number}", app=shop.app).engage()
    assert len(shop.lines("ls", "--limit", "1000")) == 251


def test_ls_fits_a_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        name = f"a name that is much too long for any terminal of the world {number}"
        Clutch(name=name, tags=["one tag", "another tag"] * 5, app=shop.app).engage()
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    assert max(map(len, shop.lines("ls"))) > 200, "files and pipes take any width"
    monkeypatch.setenv("COLUMNS", "80")
    lines = shop.lines("ls")
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert all("SUCCEEDED" in line and "…" in line for line in lines[1:])


def test_ls_keeps_of_a_name_what_tells_runs_apart(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        steps = parallel(Clutch(shop.wait).when(shop.fetch.s(0)), shop.store)
        name = f"{number} orders of the day, and of the day before"
        run = Clutch(steps, name=name, tags=["orders", "big"], app=shop.app).engage()
        until(lambda run=run: (run.progress().done, run.progress().dead) == (2, 1), 30)
    monkeypatch.setenv("COLUMNS", "70")
    lines = shop.lines("ls")
    assert max(map(len, lines)) <= 70
    assert [line[10:21] for line in lines[1:]] == ["2 orders of", "1 orders of", "0 orders of"]
    assert all("2/3, 1 dead…" in line for line in lines[1:])


def test_a_run_goes_by_the_start_of_its_id(shop: Shop) -> None:
    ids = ["abcdefgh-1", "abcdefgh-2", "b" * 36, "c"]
    for id in ids:
        Clutch(shop.fetch.s(id), id=id, app=shop.app).engage().get(timeout=30)
    short = [row["ID"] for row in shop.table("ls")]
    assert short == ["c", "b" * 8, "abcdefgh-2", "abcdefgh-1"]
    for name, id in zip(short, reversed(ids), strict=True):
        assert shop.json("results", name) == [id]
    assert shop.json("results", "b") == ["b" * 36]
    assert "b" * 36 in shop("show", "bb").output
    assert shop.lines("cancel", "bbb") == [f"{'b' * 36} has ended already"]
    assert "RUNNING" not in shop("watch", "bbb").output
    told = shop("show", "abc", code=1).output
    assert "the ids of 2 runs start with 'abc': abcdefgh-2 (SUCCEEDED), abcdefgh-1" in told
    assert shop.lines("forget", "--yes", "abcdefgh-1") == ["abcdefgh-1 forgotten"]
    assert shop.json("results", "abc") == ["abcdefgh-2"], "now it is the only one"


def test_short_ids_are_not_those_of_runs_that_are_not_listed(shop: Shop) -> None:
    for id, tags in (("order-2024-1", ["a"]), ("order-2024-2", ["b"]), ("other", ["b"])):
        Clutch(id=id, tags=tags, app=shop.app).engage()
    for options in (["--tag", "a"], ["--older", "0s", "--limit", "3", "--tag", "a"]):
        (row,) = shop.table("ls", *options)
        assert row["ID"] == "order-2024-1"
    assert [row["ID"] for row in shop.table("ls", "--limit", "2")] == ["other", "order-2024-2"]


class Unlisted(MemoryStore):
    """A store that cannot be listed."""

    def scan(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("all runs are listed")


def test_a_whole_id_needs_no_listing(shop: Shop) -> None:
    runtime(shop.app).store = Unlisted()
    shop.succeeded()
    for command in ("show good", "failures good", "cancel good", "why good --no-ask"):
        shop(*command.split())
    assert shop.json("results", "good") == ["clean"]


@pytest.mark.parametrize(
    "command",
    [
        *("show", "failures", "results", "data", "graph", "doctor --timeout 0.1", "why --no-ask"),
        *("watch", "cancel", "resume", "cancel --dry-run", "resume --dry-run", "forget --yes"),
    ],
)
def test_every_command_takes_the_start_of_an_id(shop: Shop, command: str) -> None:
    shop.succeeded(id="the-good-one")
    told = shop(*command.split(), "the-g").output
    if command.split()[0] not in ("failures", "results", "data", "graph", "why"):
        assert "the-good-one" in told
    shop(*command.split(), "nope", code=1)


def test_the_id_of_a_run_goes_before_those_that_start_with_it(shop: Shop) -> None:
    for id in ("day", "day-1"):
        Clutch(shop.fetch.s(id), id=id, app=shop.app).engage().get(timeout=30)
    assert shop.json("results", "day") == ["day"]


def test_shells_complete_ids(shop: Shop) -> None:
    shop.succeeded("one-1")
    shop.succeeded("one-2")
    obj = CLIContext(shop.app, no_color=True, workdir=None)
    shell = ShellComplete(cli.clutch, {"obj": obj}, "clutch", "_CLUTCH_COMPLETE")
    found = [item.value for item in shell.get_completions(["show"], "one")]
    assert sorted(found) == ["one-1", "one-2"]
    assert [item.value for item in shell.get_completions(["ls", "--state"], "f")] == ["failed"]


def test_nested_runs_are_listed_with_the_run_around_them(shop: Shop) -> None:
    shop.go_on.set()
    Clutch(shop.publish, id="outer", app=shop.app).engage().get(timeout=30)
    rows = {row["ID"]: row.get("PARENT", "") for row in shop.table("ls")}
    assert rows == {"inner": "outer", "outer": ""}
    assert [row["ID"] for row in shop.table("ls", "--top")] == ["outer"]
    found = [orjson.loads(line) for line in shop.lines("ls", "--json")]
    assert {each["id"]: each["parent"] for each in found} == {"inner": "outer", "outer": None}


# --- show ---------------------------------------------------------------------------------------


def test_nested_runs_stay_when_they_have_ended(shop: Shop) -> None:
    shop.go_on.set()
    Clutch(shop.publish, id="outer", app=shop.app).engage().get(timeout=30)
    _, publish, nested, wait = shop.lines("show", "outer")
    assert publish.startswith("└─ ✓ 0 shop.publish")
    assert nested.startswith("   └─ nested letters inner  SUCCEEDED  1 of 1 jobs")
    assert wait.startswith("      └─ ✓ 0 shop.wait")
    drawn = shop("graph", "outer").output
    assert 'subgraph n0["0 shop.publish' in drawn
    assert 'subgraph n0_0["nested letters inner' in drawn
    assert 'n0_0_0["0 shop.wait"]:::done' in drawn
    for form in ("dot", "text", "html"):
        assert "0 shop.wait" in shop("graph", "outer", "--format", form).output


def test_show_arguments(shop: Shop) -> None:
    wide = {"photo": "p" * 100}
    Clutch(shop.fetch.s(1), shop.fetch.s(**wide), id="args", app=shop.app).engage().get(timeout=30)
    assert "shop.fetch(" not in shop("show", "args").output
    _, first, second = shop.lines("show", "args", "--args")
    assert "0 shop.fetch(1)" in first
    assert f"1 shop.fetch(photo='{'p' * 52}…)" in second
    nodes = shop.json("show", "args", "--args", "--json")["nodes"]
    assert [node["arguments"] for node in nodes] == ["1", f"photo='{'p' * 100}'"]
    assert "arguments" not in shop.json("show", "args", "--json")["nodes"][0]


def test_show_when_the_next_attempt_is_due(shop: Shop) -> None:
    @shop.app.task(name="shop.later", bind=True)
    def later(job: ClutchTask) -> None:
        raise job.retry(exc=OSError("not yet"), countdown=3600)

    run = Clutch(later, id="later", app=shop.app).engage()
    until(lambda: run.status().failing, 30)
    (_, line) = shop.lines("show", "later")
    assert "OSError: not yet (attempt 1; it is retried)  next attempt in " in line
    assert shop.json("show", "later", "--json")["nodes"][0]["retry_at"] > run.status().created_at
    run.cancel()


# --- failures and stats --------------------------------------------------------------------------


def test_failures_that_are_alike_are_shown_together(shop: Shop) -> None:
    @shop.app.task(name="shop.pick")
    def pick(number: int) -> None:
        raise KeyError(f"shelf {number}") if number < 5 else OSError("closed")

    wide = parallel(pick.s(number) for number in range(7))
    run = Clutch(wide, id="many", app=shop.app).engage()
    until(lambda: run.status().dead == 7, 30)
    first, places, second, others = shop.lines("failures", "many")
    assert first == f"5 {TIMES} shop.pick  KeyError: 'shelf 0'"
    assert places == "    5 dead, 0 retried: 0.0, 0.1, 0.2 and 2 more"
    assert second == f"2 {TIMES} shop.pick  OSError: closed"
    assert others == "    2 dead, 0 retried: 0.5, 0.6"
    found = shop.json("failures", "many", "--json")
    assert [(each["count"], each["dead"]) for each in found] == [(5, 5), (2, 2)]
    assert shop.lines("failures", "many", "--limit", "1")[2:] == ["… and 1 other kinds"]
    shop.succeeded()
    assert shop.lines("failures", "good") == ["no job without a result has failed"]


def test_failures_that_are_tolerated_are_shown_where_that_is_asked_for(shop: Shop) -> None:
    @shop.app.task(name="shop.pick")
    def pick(number: int) -> None:
        raise KeyError(f"shelf {number}")

    wide = parallel((pick.s(number) for number in range(3)), allow_failures=True)
    run = Clutch(wide, id="most", app=shop.app).engage()
    until(run.ready, 30)
    none, hint = shop.lines("failures", "most")
    assert none == "no job without a result has failed"
    assert hint == "tolerated deaths: 3 (see --tolerated)"
    assert shop.json("failures", "most", "--json") == []
    first, places = shop.lines("failures", "most", "--tolerated")
    assert first == f"3 {TIMES} shop.pick  KeyError: 'shelf 0'"
    assert places == "    3 tolerated: 0.0, 0.1, 0.2"
    (found,) = shop.json("failures", "most", "--tolerated", "--json")
    assert (found["count"], found["dead"]) == (3, 3)
    shop.succeeded()
    assert shop.lines("failures", "good", "--tolerated") == ["no failure is tolerated"]


def test_stats(shop: Shop) -> None:
    assert shop.lines("stats")[0] == "runs  none"
    shop.succeeded()
    shop.failed()
    shop.waiting()
    runs, jobs, hour, oldest, quiet, _, head, *tasks = shop.lines("stats")
    assert runs == "runs  1 FAILED, 1 RUNNING, 1 SUCCEEDED"
    assert jobs == "jobs  32 of 35, 0 failing, 1 dead"
    assert hour == "in the last hour 2 runs have ended, 32 jobs done"
    assert oldest.startswith("running for longest: slow, for ")
    assert quiet.startswith("quiet for longest: slow, for ")
    assert head.split() == ["TASK", "JOBS", "P50", "P95", "MOST"]
    assert {line.split()[0]: line.split()[1] for line in tasks} == {
        "shop.fetch": "31",
        "shop.scan": "1",
    }
    found = shop.json("stats", "--json")
    assert found["states"] == {"FAILED": 1, "RUNNING": 1, "SUCCEEDED": 1}
    assert 0 <= found["tasks"]["shop.fetch"]["p50"] <= found["tasks"]["shop.fetch"]["most"]


# --- what others have written --------------------------------------------------------------------

NASTY = "a\x1b[31mred\x9b31m\u202edesrever\u2066\x7f\r\nnext"


def test_no_command_reaches_the_terminal(shop: Shop) -> None:
    @shop.app.task(name="shop.nasty", bind=True)
    def nasty(job: ClutchTask) -> Any:
        job.data["key"] = NASTY
        return {NASTY: [NASTY]}

    @shop.app.task(name="shop.angry")
    def angry(text: str) -> None:
        raise OSError(text)

    run = Clutch(nasty, angry.s(NASTY), id="nasty", app=shop.app).engage()
    until(lambda: run.status().dead, 30)
    commands = ["show nasty --traceback --args", "results nasty 0", "data nasty", "failures nasty"]
    commands += ["show nasty --json", "failures nasty --json", "ls", "stats", "graph nasty"]
    commands += ["graph nasty --format html", "graph nasty --format text", "results nasty"]
    for command in commands:
        told = CliRunner().invoke(
            cli.clutch, command.split(), obj=CLIContext(shop.app, no_color=True, workdir=None)
        )
        commanding = [char for char in told.output if char != "\n" and not char.isprintable()]
        assert not commanding, command
    assert shop.json("results", "nasty", "0") == {NASTY: [NASTY]}, "JSON means the same"


def test_show(shop: Shop) -> None:
    shop.succeeded()
    head, fetch, scan = shop.lines("show", "good")
    assert head.startswith("sunset good  SUCCEEDED  2 of 2 jobs  took ")
    assert fetch.startswith("├─ ✓ 0 shop.fetch  ")
    assert scan.startswith("└─ ✓ 1 shop.scan  ")
    assert scan.endswith(f"  @{HOST}  attempt 2")


def test_show_a_failed_run(shop: Shop) -> None:
    shop.failed()
    head, *below = shop.lines("show", "bad")
    assert head.startswith("shelf bad  FAILED  30 of 32 jobs, 1 dead  took ")
    assert below == [
        "├─ ✗ 0 parallel \N{MULTIPLICATION SIGN} 31  30 done, 1 dead",
        "│  ├─ ✗ 0.30 shop.store  OSError: the shelf is full",
        "│  └─ … and 30 more",
        "└─ · 1 shop.fetch",
    ]
    assert len(shop.lines("show", "bad", "--all")) == 34
    told = shop("show", "bad", "--traceback").output
    assert "\n│  │    Traceback (most recent call last):\n" in told
    assert "\n│  │    OSError: the shelf is full\n" in told


def test_show_runs_that_jobs_wait_for(shop: Shop) -> None:
    Clutch(shop.publish, shop.fetch.s(1), id="outer", app=shop.app).engage()
    until(lambda: "shop.wait  running" in shop("show", "outer").output, 30)
    head, publish, nested, wait, fetch = shop.lines("show", "outer")
    assert (head, publish) == ("outer  RUNNING  0 of 2 jobs", "├─ ▸ 0 shop.publish")
    assert nested == "│  └─ nested letters inner  RUNNING  0 of 1 jobs"
    assert wait.startswith("│     └─ ▸ 0 shop.wait  running for ")
    assert fetch == "└─ · 1 shop.fetch"
    (inner,) = shop.json("show", "outer", "--json")["nodes"][0]["nested"]
    assert (inner["id"], inner["nodes"][0]["state"]) == ("inner", "running")


def test_show_json(shop: Shop) -> None:
    run = shop.failed()
    found = shop.json("show", "bad", "--json")
    assert {key: found[key] for key in run.status().to_dict()} == run.status().to_dict()
    nodes = {node["address"]: node for node in found["nodes"]}
    assert len(nodes) == 33
    assert nodes["0"]["jobs"] == {"done": 30, "dead": 1}
    assert nodes["0.3"]["attempt"] == 1
    assert nodes["0.30"]["failure"]["message"] == "the shelf is full"


@pytest.mark.parametrize(
    "command", ["show", "watch", "results", "data", "cancel", "resume", "graph", "forget --yes"]
)
def test_a_run_that_is_not_there(shop: Shop, command: str) -> None:
    result = shop(*command.split(), "nope", code=1)
    assert result.output.startswith("Error: there is no run 'nope'")
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["ls", "show x", "watch x", "watch --all", "data x", "results x"]
)
def test_a_store_that_is_not_there(command: str) -> None:
    shop = Shop()
    shop.app.conf.clutch_store = "redis://localhost:1/0"
    result = shop(*command.split(), code=1)
    assert result.output.splitlines()[-1].startswith("Error: Redis cannot be reached")
    shop.app.conf.clutch_store = None
    shop.app.conf.broker_url = "memory://"
    result = shop(*command.split(), code=1)
    assert "clutch_store" in result.output.splitlines()[-1]


def test_a_broker_that_is_not_there() -> None:
    shop = Shop()
    shop.app.conf.update(broker_url="redis://localhost:1/0", clutch_store="memory://")
    composed = Clutch(shop.fetch.s(1), app=shop.app)
    canvas.prepare(shop.app, composed.plan, run="stored").create()
    assert shop("resume", "stored", code=1).output.startswith("Error: ")


# --- watch --------------------------------------------------------------------------------------


def test_watch_until_it_has_succeeded(shop: Shop) -> None:
    shop.waiting(shop.fetch.s(1))
    threading.Timer(0.3, shop.go_on.set).start()
    first, *_, last = shop.lines("watch", "slow", "--interval", "0.1")
    assert first[10:] == "slow one slow  RUNNING  0 of 2 jobs"
    assert last[10:] == "slow one slow  SUCCEEDED  2 of 2 jobs"


def test_watch_counts_what_was_decided_while_the_run_ran(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Clutch(shop.fetch.s([1, 2, 3]), name="order 7", app=shop.app).map(shop.fetch).engage()
    run.get(timeout=30)
    (line,) = shop.lines("watch", run.id)
    assert line[10:] == f"order 7 {run.id}  SUCCEEDED  4 of 4 jobs"


def test_watch_shortens_an_id_where_its_line_would_not_fit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Clutch(shop.fetch.s(1), name="order 7", app=shop.app).engage()
    run.get(timeout=30)
    whole = f"order 7 {run.id}  SUCCEEDED  1 of 1 jobs"
    fits = len(whole) + 10
    for columns, shown in (fits, run.id), (fits - 1, run.id[:8]):
        monkeypatch.setenv("COLUMNS", str(columns))
        (line,) = shop.lines("watch", run.id)
        assert line[10:] == whole.replace(run.id, shown)


def test_watch_all_shortens_no_id_without_a_terminal(shop: Shop) -> None:
    run = Clutch(shop.wait, name="order 7", app=shop.app).engage()
    threading.Timer(0.3, shop.go_on.set).start()
    lines = shop.lines("watch", "--all", "--interval", "0.1")
    assert lines[1][10:] == f"order 7 {run.id}  RUNNING  0 of 1 jobs"


def test_watch_leaves_room_for_the_bar(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    run = Clutch(shop.fetch.s(1), name="order 7", app=shop.app).engage()
    run.get(timeout=30)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    assert f" order 7 {run.id[:8]}  SUCCEEDED  1 of 1 jobs" in shop("watch", run.id).output


def test_watch_ends_with_1_where_the_run_failed_or_was_cancelled(shop: Shop) -> None:
    shop.failed()
    (line,) = shop.lines("watch", "bad", code=1)
    assert line[10:] == "shelf bad  FAILED  30 of 32 jobs, 1 dead"
    shop.waiting().cancel()
    (line,) = shop.lines("watch", "slow", code=1)
    assert "CANCELLED" in line


def test_watch_all(shop: Shop) -> None:
    assert shop.lines("watch", "--all") == ["no run is running"]
    runs = [shop.waiting(id="one"), shop.waiting(shop.store, id="two")]
    threading.Timer(0.3, shop.go_on.set).start()
    told = shop.lines("watch", "--all", "--interval", "0.1", code=1)
    lines = [line[10:] for line in told]
    assert lines[0] == "2 RUNNING  0 of 3 jobs  0.0 a second"
    assert lines[1:3] == [
        "slow one one  RUNNING  0 of 1 jobs",
        "slow one two  RUNNING  0 of 2 jobs",
    ]
    assert lines[-3].startswith("1 FAILED, 1 SUCCEEDED  2 of 3 jobs")
    assert lines[-2:] == [
        "slow one two  FAILED  1 of 2 jobs, 1 dead",
        "slow one one  SUCCEEDED  1 of 1 jobs",
    ]
    assert [line[:10].strip() != "" for line in told[:3]] == [True, False, False], "one time"
    assert all(run.ready() for run in runs)


def test_watch_all_without_a_terminal_shows_the_top(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [
        Clutch(shop.wait, name="a name that is long " * 4, app=shop.app).engage()
        for _ in range(TOP + 3)
    ]
    threading.Timer(0.3, lambda: [run.forget() for run in started]).start()
    monkeypatch.setenv("COLUMNS", "80")
    summary, *top = shop.lines("watch", "--all", "--interval", "0.1")[: TOP + 1]
    assert summary[10:].startswith("18 RUNNING  0 of 18 jobs  ")
    assert summary.endswith("(the top 15 are shown)")
    assert max(map(len, top)) <= 80
    for run, line in zip(started, top, strict=False):
        assert f" {run.id[:8]}  RUNNING  0 of 1 jobs" in line
    shop.go_on.set()


def test_watch_all_ends_when_what_is_left_is_forgotten(shop: Shop) -> None:
    run = shop.waiting()
    threading.Timer(0.3, run.forget).start()
    assert shop.lines("watch", "--all", "--interval", "0.1")[-1] == "no run is running"
    shop.go_on.set()


def test_watch_takes_one_run_or_all(shop: Shop) -> None:
    shop("watch", code=2)
    shop("watch", "some", "--all", code=2)


def test_watch_draws_on_a_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    shop.waiting(shop.fetch.s(1))
    threading.Timer(0.3, shop.go_on.set).start()
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    drawn = shop("watch", "slow", "--interval", "0.1").output
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" * 30 in drawn
    assert "slow one slow  SUCCEEDED  2 of 2 jobs" in drawn
    assert "└─ ✓ 1 shop.fetch" in drawn


def test_watch_without_rich_is_plain(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.succeeded()
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True)
    (line,) = shop.lines("watch", "good")
    assert line[10:] == "sunset good  SUCCEEDED  2 of 2 jobs"


# --- results, data, graph -----------------------------------------------------------------------


def test_results_and_data(shop: Shop) -> None:
    shop.succeeded()
    assert shop.json("results", "good") == ["clean"]
    assert shop.json("results", "good", "0") == "a"
    assert shop.json("data", "good") == {"scanned": [1]}


def test_results_that_are_not_there(shop: Shop) -> None:
    shop.failed()
    assert shop("results", "bad", "7", code=1).output.startswith(
        "Error: the plan has no address '7';"
    )
    assert shop("results", "bad", "0.30", code=1).output.startswith(
        "Error: job 0.30 of run bad has no "
    )


def test_graph_of_a_run(shop: Shop) -> None:
    shop.failed()
    drawn = shop("graph", "bad").output
    assert 'n0_30["0.30 shop.store"]:::dead' in drawn
    assert shop("graph", "bad", "--format", "dot").output.startswith("digraph")
    page = shop("graph", "bad", "--format", "html").output
    assert page.startswith("<!doctype html>")
    assert "http:" not in page and "https:" not in page, "nothing comes from elsewhere"
    assert "0.29" not in page
    assert "0.29 shop.fetch" in shop("graph", "bad", "--format", "html", "--all").output
    text = shop.lines("graph", "bad", "--format", "text")
    assert text[0].startswith("shelf bad  FAILED")
    assert len(text) == 5
    assert len(shop.lines("graph", "bad", "--format", "text", "--all")) == 34


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    made = []

    def make(source: str) -> str:
        name = f"clutch_cli_{len(made)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    monkeypatch.chdir(tmp_path)  # as `celery -A` does, the current directory is looked into
    yield make
    for name in made:
        sys.modules.pop(name, None)


COMPOSED = """
from celery import Celery
from celery_clutch import Clutch, Sequence
app = Celery("composed", set_as_current=False, broker="memory://")
job = app.signature("shop.fetch")
clutch = Clutch(job, name="mine", app=app)
def make():
    return Clutch(job, job, app=app)
class Form(Sequence):
    steps = [job]
    app = app
number = 1
def broken():
    raise RuntimeError("no such thing")
"""


def test_graph_of_what_a_module_has(shop: Shop, module: Callable[[str], str]) -> None:
    name = module(COMPOSED)

    def text(what: str) -> list[str]:
        return shop.lines("graph", f"{name}:{what}", "--format", "text")

    assert text("clutch") == ["mine", "└─ 0 shop.fetch"]
    assert text("make") == [f"{name}:make", "├─ 0 shop.fetch", "└─ 1 shop.fetch"]
    assert text("Form")[1:] == ["└─ 0 shop.fetch"]


def test_graph_of_what_is_no_clutch(shop: Shop, module: Callable[[str], str]) -> None:
    name = module(COMPOSED)
    wrong = {
        f"{name}:number": f"Error: {name}:number is not a clutch but 1\n",
        f"{name}:broken": f"Error: {name}:broken cannot be loaded: RuntimeError: no such thing\n",
        "clutch_no_such_module:x": "Error: there is no run 'clutch_no_such_module:x'",
    }
    for target, told in wrong.items():
        assert shop("graph", target, code=1).output.startswith(told)
    assert "no attribute 'nothing'" in shop("graph", f"{name}:nothing", code=1).output
    needs = module("import clutch_no_such_module")
    assert "cannot be imported" in shop("graph", f"{needs}:x", code=1).output


def test_a_run_may_have_an_id_like_a_module(shop: Shop) -> None:
    shop.succeeded(id="order:7")
    assert "shop.scan" in shop("graph", "order:7").output


# --- steering -----------------------------------------------------------------------------------


def test_cancel_and_resume(shop: Shop) -> None:
    run = shop.waiting(shop.fetch.s(1), on_end=shop.end)
    shop.succeeded()
    assert shop.lines("cancel", "slow", "good") == ["slow cancelled", "good has ended already"]
    until(lambda: shop.ended == [("slow", "CANCELLED")])
    assert run.state is State.CANCELLED
    shop.go_on.set()
    assert shop.lines("resume", "slow", "good") == ["slow resumed", "good has nothing to resume"]
    assert run.get(timeout=30) == [1]
    until(lambda: shop.ended == [("slow", "CANCELLED"), ("slow", "SUCCEEDED")])


def test_what_is_missing_does_not_keep_the_rest_from_being_done(shop: Shop) -> None:
    shop.failed()
    shop.full = False
    missing, resumed = shop.lines("resume", "nope", "bad", code=1)
    assert missing.startswith("Error: there is no run 'nope'")
    assert resumed == "bad resumed"


def test_forget_asks(shop: Shop) -> None:
    shop.succeeded()
    assert "Forget good" in shop("forget", "good", said="n\n", code=1).output
    assert shop.lines("ls")[1:]
    shop("forget", "good", said="y\n")
    assert shop.lines("ls")[1:] == []
    shop.succeeded()
    assert shop.lines("forget", "good", "--yes") == ["good forgotten"]


def test_what_filters_choose_is_shown_and_confirmed(shop: Shop) -> None:
    shop.failed()
    shop.succeeded(tags=["x"])
    shop.waiting(id="slow")
    shop.full = False
    chosen = "bad  shelf  FAILED  30 of 32 jobs, 1 dead"
    assert shop.lines("resume", "--newer", "2h", "--dry-run") == [chosen]
    assert shop.lines("resume", "bad", "--dry-run") == [chosen]
    missing, *_ = shop.lines("resume", "nope", "--dry-run", code=1)
    assert missing.startswith("Error: there is no run 'nope'")
    asked = shop("resume", "--state", "failed", said="n\n", code=1).output.splitlines()
    assert asked == [chosen, "Resume bad? [y/N]: n", "Aborted!"]
    assert shop.lines("resume", "--name", "shelf", "--yes") == [chosen, "bad resumed"]
    assert shop.lines("cancel", "--older", "1h", "--yes") == ["no run to cancel"]
    assert shop.lines("cancel", "--name", "slow one", "--yes")[-1] == "slow cancelled"
    assert shop.lines("forget", "--tag", "x", "--dry-run")[-1].startswith("good  sunset  SUCCEEDED")
    assert shop.lines("forget", "--tag", "x", "--yes")[-1] == "good forgotten"
    assert "give either" in shop("cancel", code=2).output
    assert "give either" in shop("cancel", "slow", "--tag", "x", code=2).output
    shop.go_on.set()


def test_prune_and_migrate_where_there_is_nothing_to_do(shop: Shop) -> None:
    assert shop.lines("prune") == ["0 expired runs deleted"]
    assert shop.lines("migrate") == ["nothing to do"]


def test_sweep_prints_what_it_resumed(shop: Shop) -> None:
    assert shop.lines("sweep") == []
    assert shop.lines("sweep", "--grace", "0", "--silent-for", "3600") == []


# --- doctor -------------------------------------------------------------------------------------


def test_doctor(shop: Shop) -> None:
    lines = shop.lines("doctor", "--timeout", "5")
    assert "ok       workers that answer: embedded@localhost" in lines
    assert "warning  clutch_store is memory://, which other processes cannot see" in lines
    shop("doctor", "--strict", code=2)
    found = shop.json("doctor", "--json")
    assert {each["severity"] for each in found} == {"ok", "warning"}


@pytest.mark.parametrize(("columns", "width"), [("", 80), ("70", 70)])
def test_doctor_fits_a_terminal(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, columns: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = shop.lines("doctor", "--timeout", "1")
    assert width - 20 < max(map(len, lines)) <= width
    margins = {line[:9].strip() for line in lines}
    assert margins == {"ok", "warning", ""}, "what is wrapped stands below its beginning"
    told = " ".join(line[9:] for line in lines)
    for finding in shop.json("doctor", "--timeout", "1", "--json"):
        assert finding["what"] in told
        assert finding["fix"] in told


def test_doctor_of_a_run_that_is_not_there(shop: Shop) -> None:
    output = shop("doctor", "nosuch", "--timeout", "5", code=1).output
    assert "problem  there is no run 'nosuch'" in output
    assert "embedded@localhost" in output


def test_doctor_ends_with_1_where_there_is_a_problem(shop: Shop) -> None:
    shop.app.conf.clutch_store = "nosuch://"
    assert "problem  the result store" in shop("doctor", "--strict", code=1).output


# --- as Celery calls it -------------------------------------------------------------------------


def test_options_that_the_app_adds_to_every_command_do_no_harm(shop: Shop) -> None:
    callback: Any = cli.clutch.callback
    callback(theirs=True)


def test_help_of_every_command(shop: Shop) -> None:
    told = shop("--help").output
    for name, command in cli.clutch.commands.items():
        assert command.help
        assert f"\n  {name} " in told
        shop(name, "--help")


def test_colours_only_where_they_are_wanted(shop: Shop) -> None:
    shop.succeeded()
    obj = CLIContext(shop.app, no_color=False, workdir=None)
    told = CliRunner().invoke(cli.clutch, ["show", "good"], obj=obj, color=True).output
    assert "\x1b[32m✓\x1b[0m" in told
    assert "\x1b" not in shop("show", "good").output


# --- commands of plugins --------------------------------------------------------------------


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution that brings a command; *target* is where it is."""

    def bring(source: str, target: str, name: str = "greet") -> None:
        (tmp_path / "clutch_greetings.py").write_text(source, "utf-8")
        info = tmp_path / "clutch_greetings-1.0.dist-info"
        info.mkdir()
        metadata = "Metadata-Version: 2.1\nName: clutch-greetings\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, "utf-8")
        points = f"[celery_clutch.commands]\n{name} = {target}\n"
        (info / "entry_points.txt").write_text(points, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "clutch_greetings", raising=False)

    return bring


GREET = """
import click

@click.command()
@click.pass_obj
def greet(obj):
    "Say hello to the app."
    click.echo(f"hello {obj.app.main}")
"""


def test_a_plugin_brings_a_command(shop: Shop, bring: Callable[..., None]) -> None:
    bring(GREET, "clutch_greetings:greet")
    assert shop("greet").output == "hello shop\n"
    assert "Say hello to the app." in shop("--help").output
    assert "\n  greet " in shop("--help").output


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import nowhere", "clutch_greetings:greet", "No module named 'nowhere'"),
        ("greet = 1", "clutch_greetings:greet", "is no click command"),
    ],
)
def test_a_broken_command_of_a_plugin_harms_no_other(
    shop: Shop, bring: Callable[..., None], source: str, target: str, reason: str
) -> None:
    bring(source, target)
    assert "Broken: " in shop("--help").output
    assert shop("ls").exit_code == 0
    told = shop("greet", code=1).output
    assert reason in told
    assert "clutch-greetings" in told
    assert "Traceback" not in told


def test_a_plugin_takes_the_name_of_no_other_command(
    shop: Shop, bring: Callable[..., None]
) -> None:
    bring(GREET, "clutch_greetings:greet", "ls")
    assert "hello" not in shop("ls").output


def test_a_command_that_nobody_brings(shop: Shop) -> None:
    assert "No such command 'greet'" in shop("greet", code=2).output
