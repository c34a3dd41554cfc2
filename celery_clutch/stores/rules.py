"""The rules of a run, over its rows. Pure; knows no database."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import orjson

from ..errors import CorruptRecord
from ..model.plan import is_in
from ..model.status import State
from .base import (
    END,
    STOPPED,
    Attempted,
    Barrier,
    Claim,
    Completion,
    Due,
    Growth,
    Lease,
    Settles,
    Tolerance,
    Turn,
)
from .rows import (
    OVER,
    ROOT,
    SKIPPED,
    TELLS,
    TOLERATED,
    UNUSUAL,
    Head,
    Rows,
)


def end_run(
    rows: Rows, state: State, token: str = "", cause: str = "", *, told: bool = False
) -> None:
    """The run has reached *state*, through the job *cause*; nothing is due if that was *told*."""
    head = rows.head
    head.state, head.ender, head.ended_at = state, token, time.time()
    if state.value in head.ends and not told:
        key = f"death {cause}" if state is State.FAILED else f"end {state.value}"
        put_due(rows, key, head.ended_at, cause)


def drain(head: Head) -> None:
    """What still ran when the run failed or was cancelled moves its end."""
    if head.state in (State.FAILED, State.CANCELLED):
        head.ended_at = head.updated_at


def resume(rows: Rows, retried: Sequence[str]) -> None:
    """The next generation: what is done stays done, the rest is forgotten. So are tolerated deaths
    in the branches *retried*."""
    head = rows.head
    over = [over_mark(key) for key, value in rows.items("mark").items() if value == OVER]
    tolerated = kept_failures(rows, retried)
    for kind in ("failure", "mark"):
        rows.clear(kind)
    for address, failure in tolerated.items():
        rows.put("failure", address, failure)
    for key in over:
        rows.put("mark", key, OVER)
    forget_messages(rows)
    for key, value in rows.items("member").items():
        step = key.rpartition("/")[0]
        if value == b"done":
            rows.add("mark", f"settled {step}")
        else:
            rows.put("member", key, None)
    head.generation += 1
    head.state, head.ender, head.ended_at = State.RUNNING, "", None
    head.failing = head.dead = 0
    if not head.remaining or has_ended(rows):
        end_early(rows, None)
    else:
        put_due(rows, ROOT, time.time(), "")


def kept_failures(rows: Rows, retried: Sequence[str]) -> dict[str, bytes]:
    """The failures that the run goes on without, but for those in the branches *retried*."""
    found: dict[str, bytes] = {}
    if rows.get("barrier", UNUSUAL) is None:
        return found
    for address, failure in rows.items("failure").items():
        again = any(is_in(address, branch) for branch in retried)
        if flags_of(failure)[2] == TOLERATED and not again:
            found[address] = failure
    return found


def forget_messages(rows: Rows) -> None:
    """Pages and jobs are no longer due; who is to be told of what has happened still is."""
    for key in rows.items("due"):
        if not key.startswith(TELLS):
            rows.put("due", key, None)


def finish_job(rows: Rows, address: str) -> bool:
    """The job has its result: its failure no longer counts. Whether the job counted as done by
    then, because its death was tolerated."""
    head = rows.head
    failure = rows.get("failure", address)
    if failure is None:
        return False
    attempt, final, finished = flags_of(failure)
    if finished:
        return finished == TOLERATED
    count_failure(head, failure, -1)
    rows.put("failure", address, b"%d %d 1\n" % (attempt, final) + failure.partition(b"\n")[2])
    if head.state is State.FAILED and not head.dead:
        head.state, head.ender, head.ended_at = State.RUNNING, "", None
    return False


def count_done(rows: Rows, jobs: int) -> None:
    """So many jobs are done that were to come, or had been given up."""
    if rows.head.remaining:
        rows.head.remaining -= jobs
    elif jobs:
        rows.add("barrier", SKIPPED, -jobs)


def add_jobs(rows: Rows, jobs: int, skips: int) -> None:
    """There are so many jobs more, and so many of all will not run."""
    head = rows.head
    head.jobs += jobs
    if head.state is State.SUCCEEDED:
        skips += jobs  # it ended before
    else:
        head.remaining += jobs - skips
    if skips:
        rows.add("barrier", SKIPPED, skips)


def goes_on(head: Head) -> bool:
    """Whether what follows from something is due."""
    return head.state not in (State.CANCELLED, State.SUCCEEDED)


def end_early(rows: Rows, by: Completion | Attempted | None) -> None:
    """The run has succeeded if it runs; what remains is skipped."""
    head = rows.head
    if head.state is not State.RUNNING:
        return
    if head.remaining:
        rows.add("barrier", SKIPPED, head.remaining)
        head.remaining = 0
    if by is None:
        end_run(rows, State.SUCCEEDED)
    else:
        end_run(rows, State.SUCCEEDED, by.token, by.address)


def has_ended(rows: Rows) -> bool:
    """Whether the run would have succeeded, had it not been cancelled or failed by then."""
    return rows.get("barrier", END) is not None or rows.get("result", STOPPED) is not None


def count_failure(head: Head, failure: bytes, by: int) -> None:
    """Count a job without a result as dead or failing."""
    if flags_of(failure)[1]:
        head.dead += by
    else:
        head.failing += by


def count_towards(
    rows: Rows,
    barriers: Iterable[Barrier],
    by: Completion | Attempted,
    settled: list[str],
    opened: Iterable[str] = (),
) -> None:
    """Count one for each of *barriers* whose gate is open, and open those that wait for no more.

    *opened* are gates that are open already.
    """
    gates = {"", *opened}
    for barrier in barriers:
        if barrier.gate not in gates or not is_full(rows, barrier):
            continue
        if barrier.closes and rows.get("result", barrier.name) is not None:
            continue
        gates.add(barrier.name)
        open_barrier(rows, barrier, by, settled)


def is_full(rows: Rows, barrier: Barrier) -> bool:
    """Count one for *barrier*; whether it is the last."""
    if barrier.width == 1 and not barrier.grows:
        return True
    count = rows.add("barrier", barrier.name)
    if count < barrier.width:
        return False
    return count == barrier.width + rows.number("barrier", f"more {barrier.name}")


def open_barrier(
    rows: Rows, barrier: Barrier, by: Completion | Attempted, settled: list[str]
) -> None:
    """All that *barrier* waits for is done."""
    if barrier.settles:
        settle(rows, barrier.settles, by, settled, failed=False)
    if barrier.turn:
        take_turn(rows, barrier.turn, by, over=True)
    if barrier.then == END:
        rows.put("barrier", END, b"1")
        end_early(rows, by)
    elif barrier.then and goes_on(rows.head):
        put_due(rows, barrier.then, time.time(), by.address)


def is_superfluous(rows: Rows, claim: Claim) -> bool:
    """Whether the job need not start: enough has been done without it."""
    return any(rows.number("barrier", name) >= enough for name, enough in claim.unless)


def tolerate(rows: Rows, failed: Attempted, settled: list[str]) -> Tolerance | None:
    """Let the run go on without a branch of the dead job, if it may; which."""
    for tolerance in failed.tolerances:
        rows.put("barrier", UNUSUAL, b"1")
        if rows.get("result", tolerance.member) is not None:
            count_done(rows, 1)
            return tolerance  # by another death
        if tolerance.need and rows.number("barrier", tolerance.step) >= tolerance.need:
            count_done(rows, 1)
            return tolerance
        died = f"dead {tolerance.step}"
        if rows.number("barrier", died) < tolerance.limit:
            rows.add("barrier", died)
            rows.put("result", tolerance.member, failed.stand_in)
            width = tolerance.barriers[0].width if tolerance.barriers else tolerance.need
            counts = int(bool(tolerance.barriers))
            known = f"{width} {counts} {tolerance.step}".encode()
            rows.put("barrier", f"tolerated {tolerance.member}", known)
            count_done(rows, 1)
            gate = (tolerance.member,)
            count_towards(rows, tolerance.barriers, failed, settled, gate)
            return tolerance
    return None


def is_tolerated(rows: Rows, address: str) -> bool:
    """Whether the job is dead, and the run goes on without its branch."""
    failure = rows.get("failure", address)
    return failure is not None and flags_of(failure)[2] == TOLERATED


def end_turns(rows: Rows, failed: Attempted, tolerance: Tolerance | None) -> None:
    """The branches that are over with a death: those around the job, up to the one that is
    tolerated."""
    for turn in failed.turns:
        member = turn.member
        if tolerance is None:
            take_turn(rows, turn, failed, over=False)
        elif member == tolerance.member:
            take_turn(rows, turn, failed, over=True)
        elif member.startswith(f"{tolerance.member}."):
            take_turn(rows, turn, failed, over=False)


def retry_tolerated(rows: Rows) -> list[str]:
    """Forget the deaths that were tolerated in parallels which wait for more branches; the
    addresses of these."""
    start = "tolerated "
    retried: list[str] = []
    for key, value in rows.items("barrier").items():
        if not key.startswith(start):
            continue
        member = key[len(start) :]
        width, counts, step = value.decode().split(" ", 2)
        enough = int(width) + rows.number("barrier", f"more {step}")
        if rows.number("barrier", step) >= enough:
            continue
        rows.put("barrier", key, None)
        rows.put("result", member, None)
        rows.put("mark", over_mark(f"turn {member}"), None)
        rows.add("barrier", f"dead {step}", -1)
        rows.add("barrier", step, -int(counts))
        rows.head.remaining += 1
        retried.append(member)
    return retried


def grow(rows: Rows, growth: Growth, cause: str) -> None:
    """Branches are added to a parallel."""
    rows.put("barrier", UNUSUAL, b"1")
    for name, more in growth.barriers.items():
        rows.add("barrier", f"more {name}", more)
    key = f"added {growth.step}"
    added = orjson.loads(rows.get("barrier", key) or b"[]")
    rows.put("barrier", key, orjson.dumps([*added, *growth.branches]))
    for page, data in growth.pages.items():
        rows.put("page", page, data)
    add_jobs(rows, growth.jobs, 0)
    if not goes_on(rows.head):
        return
    for page in growth.due:
        put_due(rows, f"page {page}", time.time(), cause)
    if growth.limit:
        use_idle(rows, growth, len(added), cause)


def use_idle(rows: Rows, growth: Growth, before: int, cause: str) -> None:
    """Start as many of the branches added as there is room for: where another was over and no
    branch was left to start, or none has been."""
    idle = f"idle {growth.step}"
    taken = f"taken {growth.step}"
    number = max(rows.number("mark", taken), min(growth.limit, growth.width))
    if number < growth.width + before:
        return  # others wait for their turn
    # Room for more branches than there were at the start is counted here for the first time.
    room = max(growth.limit - growth.width, 0)
    free = min(rows.number("mark", idle) + room, len(growth.branches))
    for index in range(free):
        branch = growth.branches[index][0]
        put_due(rows, f"page {growth.step}/{branch}", time.time(), cause)
    if free > 0:
        rows.add("mark", idle, -free)
        rows.put("mark", taken, b"%d" % (number + free))


def settle(
    rows: Rows,
    settles: Settles,
    by: Completion | Attempted,
    settled: list[str],
    *,
    failed: bool,
) -> None:
    """Count a member of a step, once; what follows when the last has settled."""
    step, key = settles.step, f"{settles.step}/{settles.member}"
    known = rows.get("member", key)
    if not failed:
        rows.put("member", key, b"done")
    elif known is None:
        rows.put("member", key, b"failed")
    count = rows.number("mark", f"settled {step}")
    if known is None:
        count = rows.add("mark", f"settled {step}")
    if failed and settles.loud:
        rows.put("mark", f"failed {step}", b"1")
    width = settles.width
    if rows.get("barrier", UNUSUAL) is not None:
        parallel = step.removesuffix("!")  # a header of a chord is named so
        added = rows.get("barrier", f"added {parallel}")
        width += len(orjson.loads(added or b"[]"))
    if count < width:
        return
    if known is None:
        settled.append(step)
    reported = rows.get("mark", f"reported {step}") or rows.head.state is State.CANCELLED
    if rows.get("mark", f"failed {step}") and not reported:
        rows.put("mark", f"reported {step}", b"1")
        put_due(rows, f"failure {step}", time.time(), by.address)


def take_turn(rows: Rows, turn: Turn, by: Completion | Attempted, *, over: bool) -> None:
    """A branch is over, for good or by a death: the next one of its parallel that is not is due."""
    key, wanted = f"turn {turn.member}", goes_on(rows.head)
    known = rows.get("mark", key)
    if over:
        rows.put("mark", key, OVER)
    elif known is None and wanted:
        rows.put("mark", key, b"dead")
    if known is not None or not wanted:
        return
    key = f"taken {turn.address}"
    number = max(rows.number("mark", key), min(turn.limit, turn.width))
    if rows.head.generation:
        number = not_over(rows, turn, number)
    if number < turn.width:
        rows.put("mark", key, b"%d" % (number + 1))
        put_due(rows, f"page {turn.address}/{number}", time.time(), by.address)
        return
    added = orjson.loads(rows.get("barrier", f"added {turn.address}") or b"[]")
    if number - turn.width < len(added):
        rows.put("mark", key, b"%d" % (number + 1))
        branch = added[number - turn.width][0]
        put_due(rows, f"page {turn.address}/{branch}", time.time(), by.address)
    else:
        rows.put("mark", key, b"%d" % number)
        rows.add("mark", f"idle {turn.address}")


def not_over(rows: Rows, turn: Turn, number: int) -> int:
    """The first branch from *number* on that was not over when the run was resumed."""
    while number < turn.width:
        marks = [f"over {turn.address}.{number + each}" for each in range(100)]
        rows.fetch("mark", marks)
        for mark in marks:
            if not rows.get("mark", mark):
                return number
            number += 1
    return number


def over_mark(key: str) -> str:
    """What stays, when the run is resumed, of the mark that a branch is over."""
    return f"over {key.partition(' ')[2]}"


def put_due(rows: Rows, key: str, since: float, cause: str) -> None:
    rows.put("due", key, Due(since, 0, cause).dumps())


def made_due(rows: Rows) -> tuple[str, ...]:
    """What has become due in this transaction."""
    changed = rows.changed.get("due", {})
    return tuple(sorted(key for key, value in changed.items() if value is not None))


def due_of(rows: Rows, cause: str) -> tuple[str, ...]:
    """What is due that follows from the job *cause*."""
    found = [key for key, value in rows.items("due").items() if Due.loads(value).cause == cause]
    return tuple(sorted(found))


def pages_of(rows: Rows, due: Sequence[str]) -> dict[str, bytes]:
    """The pages that are due."""
    keys = [key.partition(" ")[2] for key in due if key.startswith("page ")]
    rows.fetch("page", keys)
    return dict(present({key: rows.get("page", key) for key in keys}))


def drop_checkpoint(rows: Rows, address: str) -> None:
    """The job has completed: what it has put away, and what was reported to it, is over."""
    if rows.get("held", address) is None:
        return
    rows.put("held", address, None)
    for child in children_of(rows, address):
        rows.put("child", f"{address} {child}", None)


def children_of(rows: Rows, address: str) -> dict[str, bytes]:
    """What was reported to the job at *address*, by child."""
    found: dict[str, bytes] = {}
    for key, value in rows.items("child").items():
        job, _, child = key.partition(" ")
        if job == address:
            found[child] = value
    return found


def flags_of(failure: bytes) -> tuple[int, bool, int]:
    """The attempt of a failure, whether it was final, and whether the job counts as done since: 1
    for a result, `TOLERATED` for a tolerated death."""
    attempt, final, finished = failure.partition(b"\n")[0].split()
    return int(attempt), final == b"1", int(finished)


def read_lease(address: str, value: bytes) -> Lease:
    try:
        return Lease.loads(value)
    except ValueError as exc:
        raise CorruptRecord(f"the lease of job {address} cannot be read: {exc!r}") from None


def present(rows: Mapping[str, bytes | None]) -> Iterable[tuple[str, bytes]]:
    return ((key, value) for key, value in rows.items() if value is not None)
