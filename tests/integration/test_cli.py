"""``celery -A ... clutch``, as operators call it, next to a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from celery_clutch import Clutch, State, parallel
from celery_clutch.runtime.leases import HOST

from .app import fail_unless, nests, value
from .lab import MODULE, ROOT, Gate, Lab, until


def start(lab: Lab, *args: str) -> subprocess.Popen[str]:
    """``celery -A the_app clutch ARGS``, started."""
    environ = {
        **os.environ,
        "CLUTCH_IT_CONF": json.dumps(lab.conf),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "80",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", MODULE, "clutch", *args],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def complete(lab: Lab, words: str) -> str:
    """What bash is told when it asks how to go on after *words*."""
    environ = {
        **os.environ,
        "CLUTCH_IT_CONF": json.dumps(lab.conf),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        "_CELERY_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    celery = Path(sys.executable).with_name("celery")
    done = subprocess.run([celery], env=environ, capture_output=True, text=True, timeout=90)
    return done.stdout.replace("plain,", "")


def clutch(lab: Lab, *args: str, code: int = 0) -> str:
    """What ``celery -A the_app clutch ARGS`` prints."""
    process = start(lab, *args)
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out or err


def test_the_command_is_installed() -> None:
    (found,) = entry_points(group="celery.commands", name="clutch")
    assert found.value == "celery_clutch.operate.cli:clutch"


def test_from_engaged_to_forgotten(lab: Lab, gate: Gate, tag: str) -> None:
    run = Clutch(
        value.s(1),
        parallel(value.s(2), nests.s(value.s(4).set(queue=gate.queue))),
        value.s(3),
        name=f"cli {tag}",
    ).engage()
    (nested,) = until(lambda: lab.nested(run), "for the job that nests")
    until(lambda: lab.length(gate.queue), "for the nested job")
    shown = clutch(lab, "show", run.id)
    assert "─ ✓ 0 it.value" in shown
    assert "─ ▸ 1.1 it.nests" in shown
    assert f"─ nested {nested.id}  RUNNING  0 of 1 jobs" in shown
    assert "─ · 0 it.value" in shown
    watching = start(lab, "watch", run.id, "--interval", "0.1")
    assert watching.stdout
    assert "RUNNING" in watching.stdout.readline()
    gate.open_only()
    out, err = watching.communicate(timeout=90)
    assert (watching.returncode, err) == (0, "")
    assert "SUCCEEDED  4 of 4 jobs" in out.splitlines()[-1]
    nodes = json.loads(clutch(lab, "show", run.id, "--json"))["nodes"]
    jobs = [node for node in nodes if node["kind"] == "job"]
    assert [node["state"] for node in jobs] == ["done"] * 4
    (line,) = clutch(lab, "ls", "--name", f"cli {tag}", "--json").splitlines()
    assert json.loads(line)["id"] == run.id
    assert clutch(lab, "forget", run.id, "--yes") == f"{run.id} forgotten\n"
    assert "there is no run" in clutch(lab, "show", run.id, code=1)


def test_what_failed_is_seen_and_resumed(lab: Lab, tag: str) -> None:
    run = Clutch(fail_unless.s(tag), value.s(1)).engage()
    lab.finish(run)
    assert "FAILED" in clutch(lab, "watch", run.id, code=1)
    shown = clutch(lab, "show", run.id, "--traceback")
    assert "─ ✗ 0 it.fail_unless" in shown
    assert "Traceback (most recent call last)" in shown
    lab.raise_flag(tag)
    assert clutch(lab, "resume", run.id) == f"{run.id} resumed\n"
    run.get(timeout=60)
    assert run.state is State.SUCCEEDED


def test_a_terminal_of_80_columns(lab: Lab, tag: str) -> None:
    inner = Clutch(nests.s(value.s(4)), value.s(1), name=f"a long name of a run {tag}", tags=[tag])
    run = inner.engage()
    lab.finish(run)
    for options in ([], ["--top"], ["--tag", tag]):
        listed = clutch(lab, "ls", *options, "--limit", "20").splitlines()
        assert max(map(len, listed)) <= 80
        short = next(line.split()[0] for line in listed if run.id.startswith(line.split()[0]))
        assert run.id[:8] in short
    shown = clutch(lab, "show", short, "--args")
    assert "─ nested " in shown
    assert "0 it.value(4)" in shown
    assert f"@{HOST}" in shown
    assert "runs  " in clutch(lab, "stats")
    assert clutch(lab, "failures", short) == "no job without a result has failed\n"
    assert clutch(lab, "forget", "--tag", tag, "--dry-run").startswith(run.id)
    assert clutch(lab, "forget", "--tag", tag, "--yes").endswith(f"{run.id} forgotten\n")


def test_shells_complete(lab: Lab, tag: str) -> None:
    run = Clutch(value.s(1), id=f"complete-{tag}").engage()
    lab.finish(run)
    words = f"celery -A {MODULE} clutch show complete-{tag[:3]}"
    told = complete(lab, words)
    assert run.id in told.split()


def test_doctor_asks_the_workers(lab: Lab) -> None:
    def asked() -> list[dict[str, str]]:
        found = json.loads(clutch(lab, "doctor", "--json", "--timeout", "3"))
        answer = f"workers that answer: {lab.workers[0].name}"
        return found if answer in {each["what"] for each in found} else []

    found = until(asked, "for the worker to answer")
    told = {each["what"] for each in found}
    assert not [each for each in found if each["severity"] == "problem"]
    assert "their clocks and their celery-clutch are those of this machine" in told
    assert any("are no ClutchTasks: it.plain" in what for what in told)


def test_doctor_without_workers(idle: Lab) -> None:
    idle.conf["broker_url"] = "redis://localhost:1/0"
    told = clutch(idle, "doctor", code=1)
    assert "problem  the broker cannot be reached" in told
