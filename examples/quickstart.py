"""A clutch, watched while it runs.

    python examples/quickstart.py
        runs it in this process, with no server

    python examples/quickstart.py --broker redis://localhost:6379/0
        runs it on a real broker, with a worker that is started for the occasion

It has a series with a parallel step in it, a job that fails at first and is retried while
on_failure is sent, and a job that nests another clutch while it runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError

from celery_clutch import Clutch, ClutchError, ClutchResult, Failure, State
from celery_clutch.errors import MissingResult, RunNotFound
from celery_clutch.model.plan import Job, Node, Parallel, children, join

QUEUE = "celery-clutch-quickstart"
TIMEOUT = 60.0

app = Celery("quickstart", task_cls="celery_clutch:ClutchTask")
app.conf.update(
    broker_url=os.environ.get("QUICKSTART_BROKER"),  # set for the worker, which imports this module
    result_backend=os.environ.get("QUICKSTART_BACKEND"),
    broker_connection_retry_on_startup=True,
    task_default_queue=QUEUE,
)


# --- the tasks --------------------------------------------------------------------------------


@app.task
def fetch(name):
    time.sleep(0.3)
    return name


@app.task(bind=True)
def resize(self, width):
    time.sleep(width / 2000)
    (photo,) = self.previous_results  # one job before this one, so a list of one
    return f"{photo} {width}px"


@app.task(bind=True)
def scan(self):
    time.sleep(0.3)
    if self.request.retries == 0:
        raise self.retry(exc=ConnectionError("the scanner is busy"), countdown=1.5)
    return "clean"


@app.task(bind=True)
def report(self):
    time.sleep(0.3)
    (verdict,) = self.previous_results
    return f"scan: {verdict}"


@app.task(bind=True)
def publish(self, letters):
    inner = Clutch(parent=self, id=letters, name="letters")
    with inner.parallel():
        inner << notify.s("ann")
        inner << notify.s("bob")
    inner.engage()  # starts when this job returns, and the outer series waits for it
    return {"published": self.previous_results}


@app.task
def notify(who):
    time.sleep(0.5)
    return f"told {who}"


@app.task
def archive():
    time.sleep(0.3)
    return "archived"


@app.task
def alert(status, who):
    """What on_failure sends: *status* is ``Status.to_dict()``."""
    failure = status["failures"][0]
    return (
        f"{who}, step {status['step']} has trouble: job {failure['address']}, {failure['message']}"
    )


# --- the clutch -------------------------------------------------------------------------------


def compose(run: str) -> Clutch:
    clutch = Clutch(id=run, name="sunset", on_failure=alert.s("ops").set(task_id=f"{run}-alert"))
    clutch << fetch.s("sunset.png")
    with clutch.parallel():
        clutch << resize.s(640)
        clutch << resize.s(1280)
        with clutch.series():
            clutch << scan.s()
            clutch << report.s()
    clutch << publish.s(f"{run}-letters")
    clutch << archive.s()
    return clutch


# --- watching it ------------------------------------------------------------------------------

WAITING, ACTIVE, FAILING, DEAD, DONE = "waiting", "active", "failing", "dead", "done"
MARKS = {WAITING: "·", ACTIVE: "▸", FAILING: "!", DEAD: "✗", DONE: "✓"}
COLOURS = {WAITING: "2", ACTIVE: "36", FAILING: "33", DEAD: "31", DONE: "32"}


class View:
    """What is known of a run, and of the one nested in its job *nested_at*."""

    def __init__(self, run: ClutchResult, nested_at: str = "") -> None:
        self.run = run
        self.nested_at = nested_at
        self.plan = run.plan()
        self.results: dict[str, object] = {}
        self.failures: dict[str, Failure] = {}  # also of jobs that have recovered since
        self.failing: dict[str, Failure] = {}
        self.nested: View | None = None
        self.alert = ""
        self.state = State.RUNNING

    def refresh(self) -> None:
        # The state is read first: once it says that the run has ended, nothing is missing below.
        self.state = self.run.state
        self.failing = {failure.address: failure for failure in self.run.failures()}
        self.failures.update(self.failing)
        self._read_results(self.plan, "")
        if self.nested_at and self.nested is None:
            with suppress(RunNotFound):
                self.nested = View(ClutchResult(f"{self.run.id}-letters", app))
        if self.nested:
            self.nested.refresh()
        task_id = f"{self.run.id}-alert"
        if self.nested_at and not self.alert and app.backend.get_state(task_id) == "SUCCESS":
            self.alert = app.backend.get_result(task_id)

    def _read_results(self, node: Node, at: str) -> None:
        for index, child in enumerate(children(node)):
            address = join(at, index)
            if isinstance(child, Job) and address not in self.results:
                with suppress(MissingResult):
                    self.results[address] = self.run.results(address)
            self._read_results(child, address)

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """For each line of the tree: how it begins, the state, the node, what there is to say."""
        yield from self._below(self.plan, "", "", True)

    def _below(
        self, node: Node, at: str, indent: str, begun: bool
    ) -> Iterator[tuple[str, str, str, str]]:
        below = children(node)
        for index, child in enumerate(below):
            last = index == len(below) - 1
            address = join(at, index)
            state = self._state(child, address) if begun else WAITING
            yield (
                f"{indent}{'└─ ' if last else '├─ '}",
                state,
                _label(child, address),
                self._note(address),
            )
            inner = indent + ("   " if last else "│  ")
            yield from self._below(child, address, inner, state != WAITING)
            if address == self.nested_at and self.nested:
                state = DONE if self.nested.state is State.SUCCEEDED else ACTIVE
                yield f"{inner}└─ ", state, "nested clutch 'letters'", ""
                for head, *rest in self.nested.rows():
                    yield f"{inner}   {head}", *rest
            if not isinstance(node, Parallel):
                begun = state == DONE  # the next step of a series waits for this one

    def _state(self, node: Node, address: str) -> str:
        if isinstance(node, Job):
            failure = self.failing.get(address)
            if address in self.results:
                return DONE
            return ACTIVE if failure is None else DEAD if failure.final else FAILING
        below = [self._state(child, join(address, i)) for i, child in enumerate(children(node))]
        return DONE if set(below) == {DONE} else ACTIVE

    def _note(self, address: str) -> str:
        failure = self.failures.get(address)
        if address in self.results:
            tries = f", at attempt {failure.attempt + 1}" if failure else ""
            return f"{self.results[address]!r}{tries}"
        return (
            f"attempt {failure.attempt}: {failure.exception}: {failure.message}" if failure else ""
        )

    def lines(self, colour: bool) -> list[str]:
        status = self.run.status()
        title = f"{status.name}  {status.state}  {status.done} of {status.total} jobs"
        drawn = [title]
        for head, state, label, note in self.rows():
            mark = f"\x1b[{COLOURS[state]}m{MARKS[state]}\x1b[0m" if colour else MARKS[state]
            drawn.append(f"{head}{mark} {label}{'  ' if note else ''}{note}")
        if self.alert:
            drawn.append(f"on_failure: {self.alert}")
        return drawn


def _label(node: Node, address: str) -> str:
    if isinstance(node, Job):
        return f"{address} {node.task.rpartition('.')[2]}"
    return f"{address} {'parallel' if isinstance(node, Parallel) else 'series'}"


def watch(run: ClutchResult) -> View:
    """Draw *run* until it has ended: over and over in a terminal, else a line for each change."""
    live = sys.stdout.isatty()
    view, seen, drawn = View(run, nested_at="2"), set(), 0
    deadline = time.monotonic() + TIMEOUT
    while True:
        view.refresh()
        if live:
            drawn = redraw(view.lines(colour="NO_COLOR" not in os.environ), drawn)
        else:
            for line in changes(view, seen):
                print(line, flush=True)
        # A handler is a task of its own, and may come later than the end of the run.
        if view.state is not State.RUNNING and (view.alert or not view.failures):
            return view
        if time.monotonic() > deadline:
            raise TimeoutError(f"run {run.id} has not ended within {TIMEOUT:g} seconds")
        time.sleep(0.05)


def redraw(lines: list[str], before: int) -> int:
    """Draw *lines* over the *before* lines that were drawn last."""
    size = shutil.get_terminal_size()
    lines = [shorten(line, size.columns - 1) for line in lines[: size.lines - 1]]
    up = f"\x1b[{before}F" if before else ""
    print(f"{up}\x1b[J" + "\n".join(lines), flush=True)
    return len(lines)


def shorten(line: str, width: int) -> str:
    """*line* in at most *width* columns; colours take none."""
    width += len(line) - len(line.replace("\x1b[0m", "")) + (5 if "\x1b[3" in line else 0)
    return line if len(line) <= width else line[: width - 1] + "…"


def changes(view: View, seen: set[object]) -> Iterator[str]:
    """Lines for what has happened since the last call."""
    for _, state, label, note in view.rows():
        if note and state in (FAILING, DEAD, DONE) and (state, label, note) not in seen:
            seen.add((state, label, note))
            yield f"{MARKS[state]} {label}  {note}"
    if view.alert and view.alert not in seen:
        seen.add(view.alert)
        yield f"on_failure: {view.alert}"


# --- running it -------------------------------------------------------------------------------


@contextmanager
def real_servers(broker: str, backend: str, start_worker: bool) -> Iterator[None]:
    """The app on real servers, and a worker beside this process."""
    app.conf.update(broker_url=broker, result_backend=backend)
    if not start_worker:
        yield
        return
    here = Path(__file__).resolve().parent
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        "quickstart",
        "--workdir",
        str(here),
        "--quiet",
    ]
    command += [
        "worker",
        "--concurrency=4",
        "--loglevel=ERROR",
        f"--hostname=quickstart-{os.getpid()}@%h",
    ]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    environment = {**os.environ, "QUICKSTART_BROKER": broker, "QUICKSTART_BACKEND": backend}
    with tempfile.TemporaryFile("w+") as log:
        worker = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read())
            raise
        finally:
            worker.terminate()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@contextmanager
def in_memory() -> Iterator[None]:
    """The app in this process, with no server."""
    from celery_clutch.testing.embedded import embedded

    with embedded(app):
        yield


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run a clutch and watch it. Without options everything is in this process.",
    )
    parser.add_argument(
        "--broker",
        metavar="URL",
        help="run on this broker instead, for example redis://localhost:6379/0; a worker (4 "
        f"processes) is started beside and stopped at the end; the queue is {QUEUE}",
    )
    parser.add_argument(
        "--backend",
        metavar="URL",
        help="the Redis for results, where the broker is not Redis (default: the broker)",
    )
    parser.add_argument(
        "--no-worker",
        action="store_true",
        help="with --broker: start no worker; you run one, with QUICKSTART_BROKER=URL "
        "QUICKSTART_BACKEND=URL celery --app quickstart --workdir examples worker",
    )
    options = parser.parse_args(argv)
    if options.broker and not options.backend:
        if not options.broker.startswith("redis"):
            parser.error("--broker is not Redis, so --backend has to name one for the results")
        options.backend = options.broker
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    place = (
        real_servers(options.broker, options.backend, not options.no_worker)
        if options.broker
        else in_memory()
    )
    try:
        with place:
            run = compose(f"quickstart-{uuid4().hex[:8]}").engage()
            view = watch(run)
            if not sys.stdout.isatty():
                print("", *view.lines(colour=False), sep="\n")
            print("results:", run.get())
            for each in (view.run, view.nested and view.nested.run):
                if each:
                    each.forget()
            app.backend.forget(f"{run.id}-alert")
    except KeyboardInterrupt:
        return 130
    except (ClutchError, OperationalError, TimeoutError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # not every terminal has a tree to draw with
    sys.exit(main())
