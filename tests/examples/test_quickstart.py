"""examples/quickstart.py draws what the README shows, in a terminal and elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import redis

from .conftest import ROOT, Block

PROGRAM = [sys.executable, "-W", "default::UserWarning", str(ROOT / "examples" / "quickstart.py")]


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    drop = ("CELERY_", "COLUMNS", "LINES")  # the latter two go before the size of the terminal
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    return {**kept, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *args], env=environment(), capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def tree(readme: list[Block]) -> str:
    """What the README says it draws at the end."""
    (block,) = (block for block in readme if block.kind == "quickstart")
    return block.text


def check(done: subprocess.CompletedProcess[str], tree: str) -> None:
    assert (done.stderr, done.returncode) == ("", 0)
    events, _, rest = done.stdout.partition("\n\n")
    assert rest == tree
    lines = events.splitlines()
    assert lines[0] == "✓ 0 fetch  'sunset.png'"
    trouble = lines.index("! 1.2.0 scan  attempt 1: ConnectionError: the scanner is busy")
    alert = next(i for i, line in enumerate(lines) if line.startswith("on_failure: ops, step 1"))
    healed = lines.index("✓ 1.2.0 scan  'clean', at attempt 2")
    told = {lines.index("✓ 0.0 notify  'told ann'"), lines.index("✓ 0.1 notify  'told bob'")}
    assert trouble < alert < healed < min(told) < lines.index("✓ 3 archive  'archived'")


def test_in_this_process(tree: str) -> None:
    check(run(), tree)


def test_in_a_terminal(tree: str) -> None:
    size = struct.pack("HHHH", 40, 120, 0, 0)
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another process
        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.execve(sys.executable, PROGRAM, environment())
    said = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # its end, on Linux
            break
        if not data:
            break
        said += data
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    # Each frame starts where the one before it started, and clears what is below.
    frames = re.split(r"(?:\x1b\[\d+F)?\x1b\[J", said.decode().replace("\r\n", "\n"))
    assert len(frames) > 20
    assert "\x1b[32m✓" in frames[-1]
    assert any("\x1b[33m!" in frame for frame in frames)
    assert re.sub(r"\x1b\[\d*m", "", frames[-1]) == tree


@pytest.mark.integration
def test_on_real_servers(tree: str, broker: str) -> None:
    check(run("--broker", broker), tree)
    with redis.Redis.from_url(broker) as client:
        assert list(client.scan_iter("clutch:*quickstart-*")) == []


def test_broker_without_backend_is_refused() -> None:
    done = run("--broker", "amqp://")
    assert done.returncode == 2
    assert "--backend" in done.stderr


def test_help_names_every_option() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert {"--broker", "--backend", "--no-worker"} <= set(done.stdout.split())
