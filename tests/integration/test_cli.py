"""``celery -A ... clutch``, as operators call it, next to a real worker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from celery_clutch import Clutch, State, parallel
from celery_clutch.extend.plugins import runtime
from celery_clutch.operate import cli
from celery_clutch.runtime.leases import HOST

from .app import fail, fail_unless, hold, nests, value
from .conftest import MakeLab
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


def test_tolerated_branches_are_resumed_where_that_is_asked_for(lab: Lab, tag: str) -> None:
    one, two = f"{tag} 1", f"{tag} 2"
    steps = parallel(fail_unless.s(one, 1), fail_unless.s(two, 2), allow_failures=1)
    run = Clutch(steps).engage()
    assert lab.finish(run) is State.FAILED
    lab.raise_flag(one)
    lab.raise_flag(two)
    assert clutch(lab, "resume", "--retry-tolerated", run.id) == f"{run.id} resumed\n"
    assert run.get(timeout=30) == [1, 2]


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


# --- every command, at 80 columns ---------------------------------------------------------------

LONG = "a name that is too long for most of the terminals that there are"


@pytest.fixture(scope="module")
def seeded(make_lab: MakeLab) -> Iterator[Lab]:
    """A worker, and a store of its own with a run of each kind."""
    with make_lab("commands", clutch_key_prefix="commands", clutch_lease=600) as lab:
        lab.app.set_current()
        good = Clutch(value.s(1), nests.s(value.s(4)), name=LONG, id="good", tags=["eu", LONG])
        bad = parallel(fail.s(f"the shelf {n} is as full as all the others are") for n in range(12))
        for run in (
            good.engage(),
            Clutch(bad, value.s(1), name=LONG, id="bad-" + "b" * 32).engage(),
        ):
            lab.finish(run)
        Clutch(hold.s("commands"), name=LONG, id="slow").engage()
        until(lambda: runtime(lab.app).store.leases("slow"), "for the slow job")
        yield lab
        lab.raise_flag("commands")


FITS = [
    ("--help", 0),
    ("ls", 0),
    ("ls --top --state failed --limit 1", 0),
    ("failures bad", 0),
    ("stats", 0),
    ("watch good", 0),
    ("watch bad", 1),
    ("data good", 0),
    ("results good 0", 0),
    ("cancel slow --dry-run", 0),
    ("cancel --state running --dry-run", 0),
    ("resume bad --dry-run", 0),
    ("forget bad good --dry-run", 0),
    ("cancel good", 0),
    ("resume good", 0),
    ("prune", 0),
    ("migrate", 0),
    ("why good --no-ask", 0),
    ("why slow", 0),
    ("doctor slow --timeout 1", 0),
    ("doctor --strict --timeout 0.2", 2),
    ("doctor nope --timeout 0.2", 1),
]
ANY_WIDTH = [
    ("ls --json", 0),
    ("show good --args", 0),
    ("show bad --traceback --all", 0),
    ("graph bad --format text", 0),
    ("sweep", 0),
    ("show bad --json", 0),
    ("failures bad --json --limit 1", 0),
    ("stats --json", 0),
    ("graph good", 0),
    ("graph bad --format html --all", 0),
    ("why slow --json", 0),
    ("doctor --json --timeout 0.2", 0),
    ("show nope", 1),
    ("results bad 7", 1),
    ("cancel nope", 1),
    ("forget nope", 1),
    ("cancel", 2),
    ("watch", 2),
    ("ls --state odd", 2),
]


def test_all_runs_are_watched_at_80_columns(seeded: Lab) -> None:
    Clutch(hold.s("watched"), id="watched").engage()
    watching = start(seeded, "watch", "--all", "--interval", "0.1")
    assert watching.stdout
    lines = [watching.stdout.readline() for _ in range(2)]
    for flag in ("commands", "watched"):
        seeded.raise_flag(flag)
    out, err = watching.communicate(timeout=90)
    assert (watching.returncode, err) == (0, "")
    lines += out.splitlines()
    assert " RUNNING  0 of " in lines[0]
    assert any("watched  SUCCEEDED  1 of 1 jobs" in line for line in lines[-2:])
    assert max(map(len, lines)) <= 81, "the first two have ends of lines"


@pytest.mark.parametrize(("command", "code"), FITS)
def test_a_command_at_80_columns(seeded: Lab, command: str, code: int) -> None:
    told = clutch(seeded, *command.split(), code=code)
    assert told
    assert max(map(len, told.splitlines())) <= 80, told
    assert "Traceback" not in told


@pytest.mark.parametrize(("command", "code"), ANY_WIDTH)
def test_a_command_for_programs_a_tree_or_an_error(seeded: Lab, command: str, code: int) -> None:
    told = clutch(seeded, *command.split(), code=code)
    if "--json" in command and command != "ls --json":
        assert json.loads(told)
    if code == 1:
        assert told.startswith("Error: ")
        assert told.count("\n") == 1


def test_every_command_is_run_here() -> None:
    ran = {command.split()[0] for command, _ in FITS + ANY_WIDTH}
    assert ran - {"--help"} == set(cli.clutch.commands)


def test_the_line_of_the_readme_makes_a_shell_complete() -> None:
    readme = (ROOT.parent / "README.md").read_text("utf-8")
    (line,) = re.findall(r'^\$ (eval "\$\(_CELERY_COMPLETE=.*\)")', readme, re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script = f"{line}; complete -p celery"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "_celery_completion" in done.stdout


def test_shells_complete(lab: Lab, tag: str) -> None:
    run = Clutch(value.s(1), id=f"complete-{tag}").engage()
    lab.finish(run)
    words = f"celery -A {MODULE} clutch show complete-{tag[:3]}"
    told = complete(lab, words)
    assert run.id in told.split()


def test_doctor_asks_the_workers(lab: Lab) -> None:
    def asked() -> list[dict[str, str]]:
        found = json.loads(clutch(lab, "doctor", "--json", "--timeout", "3"))
        (answer,) = [each["what"] for each in found if "answer" in each["what"]]
        return found if lab.workers[0].name in answer else []  # others may answer as well

    found = until(asked, "for the worker to answer")
    told = {each["what"] for each in found}
    assert not [each for each in found if each["severity"] == "problem"]
    assert "their clocks and their celery-clutch are those of this machine" in told
    assert any("are no ClutchTasks: it.plain" in what for what in told)


def test_doctor_without_workers(idle: Lab) -> None:
    idle.conf["broker_url"] = "redis://localhost:1/0"
    told = clutch(idle, "doctor", code=1)
    assert "problem  the broker cannot be reached" in told
