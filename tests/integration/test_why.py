"""Why a run does not go on: each fact in the situation that it is about."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import signature

from celery_clutch import Clutch, ClutchResult, Reason, State, parallel, series
from celery_clutch.errors import ClutchTimeout

from .app import database, hold, nests, retry_in, value
from .conftest import MakeLab
from .lab import Gate, Lab, Worker, until
from .test_cli import clutch

CLOCK = r"\d\d:\d\d:\d\d UTC"
FOR = r"\([\dhmins .]+\)"


def told(run: ClutchResult, kind: str, patience: float = 90.0) -> Reason:
    """The first reason of a *kind*, as soon as there is one; workers are asked."""

    def look() -> list[Reason]:
        return [each for each in run.why(ask=True) if each.kind == kind]

    return until(look, f"for a reason of the kind {kind!r}", patience)[0]


def matches(pattern: str, reason: Reason) -> None:
    assert re.fullmatch(pattern, reason.sentence), reason.sentence


def on_terminal(text: str) -> str:
    """What a command has printed, as one line; each of its lines fits a terminal."""
    assert max(map(len, text.splitlines())) <= 80, text
    return " ".join(text.split())


def test_a_job_that_runs(lab: Lab, tag: str) -> None:
    run = Clutch(value.s(1), parallel(hold.s(tag), hold.s(tag))).engage()
    until(lambda: lab.ran(run)["1.0"] and lab.ran(run)["1.1"])
    reasons = run.why()
    assert [(each.kind, each.run, each.fix) for each in reasons] == [("running", run.id, "")] * 2
    host = re.escape(socket.gethostname())
    by_address = {each.address: each for each in reasons}
    for address, reason in by_address.items():
        pattern = rf"job {address} it\.hold runs on {host} \(process \d+\), since {CLOCK} {FOR}"
        matches(pattern, reason)
        assert reason.since is not None
        assert abs(time.time() - reason.since) < 60
    with pytest.raises(ClutchTimeout, match=r"0\.1 seconds: job 1\.[01] it\.hold runs on ") as late:
        run.get(timeout=0.1)
    assert {each.address for each in late.value.reasons} == {"1.0", "1.1"}
    with pytest.raises(ClutchTimeout, match=r"it\.hold runs on"):
        list(run.watch(timeout=0.1))
    lab.raise_flag(tag)
    assert lab.finish(run) is State.SUCCEEDED
    (ended,) = run.why(ask=True)
    matches(rf"the run succeeded at {CLOCK} \(.* ago\); nothing is left to do", ended)


def test_a_queue_that_nobody_consumes(lab: Lab, gate: Gate) -> None:
    lonely = parallel(value.s(n).set(queue=gate.queue) for n in range(4))
    run = series(value.s(0), lonely).engage()
    until(lambda: lab.length(gate.queue) == 4)
    reason = told(run, "queue")
    jobs = r"jobs \(4\) 1\.0, 1\.1, 1\.2, \.\.\. it\.value"
    matches(
        rf'no worker that answers consumes the queue "{gate.queue}", which {jobs} wait in, '
        rf"since {CLOCK} {FOR}",
        reason,
    )
    assert reason.fix == f"celery -A proj worker -Q {gate.queue}"
    waiting = told(run, "waiting")
    assert waiting.sentence.endswith(f'lie in the queue "{gate.queue}", which has 4 messages')
    assert f'no worker that answers consumes the queue "{gate.queue}"' in on_terminal(
        clutch(lab, "why", run.id)
    )
    doctor = unwrapped(clutch(lab, "doctor", run.id, "--timeout", "3", code=1))
    assert f"problem {run.id}: no worker consumes from {gate.queue}" in doctor
    gate.open()
    assert run.get(timeout=60) == [0, 1, 2, 3]


def test_a_queue_behind_a_page_that_a_worker_has_to_send(make_lab: MakeLab) -> None:
    """Its jobs go to a queue that is served, and its first message to one that is not."""
    with make_lab("page", start=False) as lab:
        lab.app.set_current()
        queues = (lab.side,)
        lab.workers.append(Worker(f"{lab.name}-0", queues, lab.conf, lab.directory / "0.log"))
        lab.workers[0].start()
        until(lab.busy)
        many = (value.s(n).set(queue=lab.side) for n in range(2000))
        run = series(parallel(many)).engage()
        reason = told(run, "queue")
        assert reason.sentence == (
            f'no worker that answers consumes the queue "{lab.queue}", which the messages go '
            "through that send the jobs of the run"
        )


def test_a_queue_of_rabbitmq(make_lab: MakeLab, rabbitmq: str) -> None:
    with make_lab("why-amqp", broker_url=rabbitmq) as lab:
        lab.app.set_current()
        lonely = f"{lab.queue}-lonely"
        run = Clutch(value.s(0), value.s(1).set(queue=lonely)).engage()
        reason = told(run, "queue")
        assert f'consumes the queue "{lonely}", which job 1 it.value waits in' in reason.sentence
        waiting = told(run, "waiting")
        assert waiting.sentence.endswith(f'lies in the queue "{lonely}", which has 1 message')
        with lab.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(lonely)

        def lost() -> bool:
            return any("is empty: it was lost" in each.sentence for each in run.why(ask=True))

        until(lost)
        run.cancel()


def test_a_worker_that_is_too_busy_to_answer(make_lab: MakeLab, tag: str) -> None:
    """A solo pool: what the store knows of its job is said all the same."""
    with make_lab("why-solo", pool="solo", concurrency=1) as lab:
        lab.app.set_current()
        run = Clutch(hold.s(tag)).engage()
        until(lambda: lab.ran(run)["0"])
        # Workers of other tests may answer, and do not have this one's queue.
        reasons = [each for each in run.why(ask=True) if each.kind != "no worker"]
        (running,) = reasons
        matches(rf"job 0 it\.hold runs on .*, since {CLOCK} {FOR}", running)
        lab.raise_flag(tag)
        assert lab.finish(run) is State.SUCCEEDED


@pytest.fixture(scope="module")
def _later(make_lab: MakeLab) -> Iterator[Lab]:
    with make_lab("later") as lab:
        yield lab


@pytest.fixture
def later(_later: Lab) -> Lab:
    """A worker that may keep messages whose time never comes."""
    _later.app.set_current()
    return _later


def test_a_job_that_is_to_be_retried(later: Lab) -> None:
    before = time.time()
    run = Clutch(retry_in.s(300.0)).engage()
    reason = told(run, "retry")
    matches(
        rf"job 0 it\.retry_in has failed in attempt 1, and is retried at {CLOCK} "
        rf"\(in [45] min.*\): ValueError: the till is shut",
        reason,
    )
    assert reason.since is not None
    assert 300 <= reason.since - before < 390
    assert [each.kind for each in run.why()] == ["retry"]
    assert "and is retried at" in on_terminal(clutch(later, "why", run.id, "--no-ask"))


def test_a_job_that_is_to_begin_later(later: Lab) -> None:
    run = Clutch(value.s(1), value.s(2).set(countdown=300)).engage()
    matches(rf"job 1 it\.value is to begin at {CLOCK} \(in [45] min.*\)", told(run, "later"))


def test_a_worker_that_was_killed(make_lab: MakeLab, tag: str) -> None:
    with make_lab("why", clutch_lease=1.0, workers=2, concurrency=1) as lab:
        lab.app.set_current()
        run = Clutch(hold.s(tag), value.s(1)).engage()
        until(lambda: lab.ran(run)["0"])
        worker = _killed(lab, run)
        died = told(run, "died")
        host = re.escape(socket.gethostname())
        assert re.match(
            rf"the process \d+ on {host} that had job 0 it\.hold has died: its lease ran out",
            died.sentence,
        )
        assert "schedule celery_clutch.sweep" in died.fix
        assert worker.name not in {each.sentence for each in run.why()}
        text = on_terminal(clutch(lab, "why", run.id))
        assert f"on {socket.gethostname()} that had job 0 it.hold has died" in text
        doctor = unwrapped(clutch(lab, "doctor", run.id, "--timeout", "3"))
        assert re.search(rf"warning +{run.id}: the process \d+ on {host} that had job 0", doctor)


def unwrapped(told: str) -> str:
    """What a command has printed, in one line."""
    return " ".join(told.split())


def _killed(lab: Lab, run: ClutchResult) -> Worker:
    from .test_leases import owner_of

    worker = owner_of(lab, run, "0")
    lab.workers.remove(worker)
    assert worker.process is not None
    os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.wait(10)
    return worker


LOST: dict[str, Callable[[str], Clutch]] = {
    "the first": lambda queue: Clutch(value.s(1).set(queue=queue)),
    "the next of a chain": lambda queue: Clutch(value.s(1), value.s(2).set(queue=queue)),
    "the body of a chord": lambda queue: Clutch(
        parallel(value.s(1), value.s(2)), value.s(3).set(queue=queue)
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_a_message_that_was_lost(lab: Lab, gate: Gate, what: str) -> None:
    run = LOST[what](gate.queue).engage()
    until(lambda: lab.length(gate.queue))
    assert lab.broker is not None
    lab.broker.delete(gate.queue)
    gate.open_only()
    nowhere = f'no worker that answers has its message, and the queue "{gate.queue}" is empty: it was lost'

    def known() -> list[Reason]:
        return [each for each in run.why(ask=True) if nowhere in each.sentence]

    (reason,) = until(known, "for the message to be known as lost")
    assert reason.kind in ("waiting", "due")
    run.cancel()


def test_what_is_due_and_not_sent(make_lab: MakeLab, gate: Gate) -> None:
    """The message is due for longer than the grace period: when the sweep sends it is said."""
    with make_lab("grace", clutch_grace=0.5) as lab:
        lab.app.set_current()
        run = Clutch(value.s(1), value.s(2).set(queue=f"{lab.queue}-lost")).engage()
        due = told(run, "due")
        assert re.match(rf"the message of job 1 it\.value is due, since {CLOCK}", due.sentence)
        assert "not known to be sent" in due.sentence
        assert "schedule celery_clutch.sweep" in due.fix
        lab.app.conf.beat_schedule = {"s": {"task": "celery_clutch.sweep", "schedule": 60.0}}
        due = told(run, "due")
        assert re.fullmatch(rf"A sweep after {CLOCK} sends it again\.", due.fix)


def test_a_worker_with_another_store_that_does_not_know_the_task(make_lab: MakeLab) -> None:
    """It takes the messages of the run, and the run never hears of it."""
    with make_lab("elsewhere", start=False) as lab:
        lab.app.set_current()
        conf = {**lab.conf, "clutch_key_prefix": "somewhere"}
        queues = (lab.queue, lab.side)
        lab.workers.append(Worker(f"{lab.name}-0", queues, conf, lab.directory / "0.log"))
        lab.workers[0].start()
        until(lab.busy)
        run = Clutch(signature("it.nobody_has_it", app=lab.app)).engage()
        store = told(run, "store")
        assert store.sentence.startswith(
            f"the worker {lab.workers[0].name} has another result store"
        )
        assert "with the prefix somewhere" in store.sentence
        assert "Give both the same clutch_store" in store.fix
        task = told(run, "task")
        assert task.sentence == (
            f'no worker that consumes the queue "{lab.queue}" knows the task it.nobody_has_it of '
            "job 0"
        )
        found = json.loads(clutch(lab, "doctor", "--json", "--timeout", "3", code=1))
        other = f"the worker {lab.workers[0].name} has another result store"
        (problem,) = [each for each in found if each["what"].startswith(other)]
        assert problem["severity"] == "problem"
        doctor = unwrapped(clutch(lab, "doctor", run.id, "--timeout", "3", code=1))
        unknown = "tasks still to run that no worker of their queue knows: it.nobody_has_it (0)"
        assert f"{run.id}: {unknown}" in doctor


def test_a_worker_on_another_database(make_lab: MakeLab) -> None:
    """The store is told apart by what is in it: two URLs of one database are one store."""
    with make_lab("database", start=False) as lab:
        url = str(lab.app.conf.result_backend)
        same = url.replace("localhost", "127.0.0.1") + "?socket_timeout=7"
        other = url.rpartition("/")[0] + "/0"
        conf = {"same": {**lab.conf, "clutch_store": same}}
        conf["other"] = {**lab.conf, "clutch_store": other}
        names = {}
        for name, own in conf.items():
            worker = Worker(f"{lab.name}-{name}", (lab.queue,), own, lab.directory / f"{name}.log")
            lab.workers.append(worker)
            names[name] = worker.name
            worker.start()
        until(lab.busy)

        def found() -> list[str]:
            said = json.loads(clutch(lab, "doctor", "--json", "--timeout", "3", code=1))
            what = [each["what"] for each in said]
            answering = next((each for each in what if each.startswith("workers that")), "")
            ready = all(name in answering for name in names.values())
            return [each for each in what if "result store" in each] if ready else []

        other_store = [each for each in until(found) if "another result store" in each]
        told_of = {name for name in names.values() for each in other_store if name in each}
        assert told_of == {names["other"]}


def test_no_worker_answers(make_lab: MakeLab) -> None:
    # On a broker of its own: workers of other tests would answer.
    with make_lab("alone", start=False, broker_url=database(1)) as lab:
        lab.app.set_current()
        run = Clutch(value.s(1)).engage()
        reason = told(run, "no worker")
        assert reason.sentence == "no worker has answered within 1 seconds"
        assert "no worker has answered" in on_terminal(clutch(lab, "why", run.id))


def test_a_run_nested_in_a_job(lab: Lab, gate: Gate) -> None:
    run = Clutch(nests.s(value.s(4).set(queue=gate.queue)), value.s(3)).engage()
    until(lambda: lab.length(gate.queue), "for the nested job")
    (nested,) = lab.nested(run)
    reasons = run.why(ask=True)
    outer = [each for each in reasons if each.run == run.id]
    assert [each.sentence for each in outer] == [
        f"job 0 it.nests waits for the nested run {nested.id}, which is RUNNING with 0 of 1 jobs done"
    ]
    kinds = {each.kind for each in reasons if each.run == nested.id}
    assert {"queue", "waiting"} <= kinds
    text = clutch(lab, "why", run.id)
    assert re.search(r"^  - no worker that answers consumes the queue", text, re.MULTILINE)
    on_terminal(text)
    gate.open()


def test_the_command_as_json(lab: Lab, tag: str) -> None:
    run = Clutch(hold.s(tag)).engage()
    until(lambda: lab.ran(run)["0"])
    found: list[dict[str, Any]] = json.loads(clutch(lab, "why", run.id, "--json"))
    (reason,) = [each for each in found if each["kind"] == "running"]
    assert (reason["run"], reason["address"]) == (run.id, "0")
    assert "there is no run" in clutch(lab, "why", "nosuch", code=1)
    lab.raise_flag(tag)
    lab.finish(run)
