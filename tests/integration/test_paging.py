"""The plan is cut into pages: what is on the wire, counted in messages and bytes."""

from __future__ import annotations

from celery_clutch import Clutch, ClutchResult, State, parallel, series

from .app import add, noop, plain, value
from .lab import Lab, handlers


def sent(lab: Lab, clutch: Clutch) -> dict[str, int]:
    """What was published for a run of *clutch*, once it has ended."""
    run = clutch.engage()
    assert lab.finish(run, patience=120) is State.SUCCEEDED
    return lab.sent(run)


def of_run(lab: Lab, run: ClutchResult) -> list[dict[str, object]]:
    """The messages of *run* in the queue of a lab without workers."""
    messages = lab.messages(lab.queue)
    return [each for each in messages if each["headers"]["clutch"]["run"] == run.id]


def names(messages: list[dict[str, object]]) -> list[str]:
    return [each["headers"]["task"] for each in messages]  # type: ignore[index]


def size(message: dict[str, object]) -> int:
    return len(str(message["body"])) + len(str(message["headers"]))


# --- a small clutch -------------------------------------------------------------------------


def test_a_clutch_of_one_page_sends_its_jobs_and_nothing_more(lab: Lab) -> None:
    clutch = series(value.s(1), parallel(value.s(i) for i in range(3)), value.s(2))
    before = lab.sent("").get("n", 0)
    found = sent(lab, clutch)
    assert found["n"] == found["it.value"] == 5
    assert lab.sent("").get("n", 0) == before


def test_small_shapes_send_their_jobs_and_nothing_more(lab: Lab) -> None:
    shapes = [
        series(noop.s()),
        series(noop.s() for _ in range(12)),
        parallel(noop.s() for _ in range(100)),
        series(parallel(noop.s() for _ in range(100)), noop.s(), noop.s(), noop.s()),
        series(parallel(series(noop.s(), noop.s()), noop.s()), noop.s()),
        parallel(series(noop.s(), noop.s()), series(noop.s(), noop.s())),
    ]
    for clutch in shapes:
        assert sent(lab, clutch)["n"] == len(clutch), str(clutch)


def test_handlers_that_are_not_due_send_nothing(lab: Lab, tag: str) -> None:
    clutch = Clutch(noop.s(), noop.s(), **handlers(tag, "on_failure", "on_death"))
    before = lab.sent("").get("n", 0)
    assert sent(lab, clutch)["n"] == 2
    assert lab.sent("").get("n", 0) == before


# --- engage ---------------------------------------------------------------------------------


def test_engage_of_3000_jobs_sends_one_message(idle: Lab) -> None:
    wide = series(parallel(value.s(i) for i in range(3000)), value.s(0)).engage()
    at_the_end = parallel(value.s(i) for i in range(3000)).engage()
    nested = parallel(series(value.s(i) for i in range(30)) for _ in range(100)).engage()
    for run in (wide, at_the_end):
        assert names(of_run(idle, run)) == ["celery_clutch.advance"]
    assert len(of_run(idle, nested)) == 100, "a page, each branch in a message of its own"


def test_engage_of_a_long_series_sends_its_first_job(idle: Lab) -> None:
    run = series(value.s(i) for i in range(3000)).engage()
    (message,) = of_run(idle, run)
    assert message["headers"]["task"] == "it.value"  # type: ignore[index]
    assert size(message) < 30_000


def test_the_first_message_does_not_grow_with_the_plan(idle: Lab) -> None:
    def first(jobs: int) -> int:
        (message,) = of_run(idle, series(value.s(7) for _ in range(jobs)).engage())
        return size(message)

    # Whole messages, because a series is cut from its end; the numbers of pages have more digits.
    assert abs(first(3000) - first(36)) < 20


# --- bytes on the wire ----------------------------------------------------------------------


def per_job(lab: Lab, clutch: Clutch) -> float:
    return sent(lab, clutch)["bytes"] / len(clutch)


def close_to(a: float, b: float) -> bool:
    return abs(a - b) <= 0.15 * a


def test_bytes_of_a_series_grow_linearly(lab: Lab) -> None:
    short = per_job(lab, series(noop.s() for _ in range(40)))
    long = per_job(lab, series(noop.s() for _ in range(400)))
    assert close_to(short, long), (short, long)


def test_bytes_of_a_parallel_grow_linearly(lab: Lab) -> None:
    for tail in ([], [noop.s()]):
        narrow = per_job(lab, series(parallel(noop.s() for _ in range(150)), *tail))
        wide = per_job(lab, series(parallel(noop.s() for _ in range(600)), *tail))
        assert close_to(narrow, wide), (narrow, wide)


def test_bytes_of_parallels_in_a_row_grow_linearly(lab: Lab) -> None:
    def shape(times: int) -> Clutch:
        clutch = Clutch()
        for _ in range(times):
            clutch << parallel(noop.s() for _ in range(20)) << noop.s()
        return clutch

    once, few, often = (per_job(lab, shape(times)) for times in (1, 4, 12))
    assert close_to(few, often), (few, often)
    assert often < 1.6 * once  # where more follows, each message carries one job and an expand


def test_bytes_of_branches_grow_linearly(lab: Lab) -> None:
    def shape(length: int) -> Clutch:
        return series(parallel(series(noop.s() for _ in range(length)) for _ in range(3)), noop.s())

    short, long = per_job(lab, shape(40)), per_job(lab, shape(160))
    assert close_to(short, long), (short, long)


def test_messages_grow_linearly(lab: Lab) -> None:
    short = sent(lab, series(noop.s() for _ in range(40)))["n"]
    long = sent(lab, series(noop.s() for _ in range(400)))["n"]
    assert short <= 45
    assert long <= 450


# --- what follows a parallel step -----------------------------------------------------------


def header_sizes(idle: Lab, following: int) -> set[int]:
    clutch = Clutch()
    with clutch.parallel():
        for _ in range(8):
            clutch << noop.s()
    for _ in range(following):
        clutch << value.s("behind")
    messages = of_run(idle, clutch.engage())
    assert names(messages) == ["it.noop"] * 8
    return {size(message) for message in messages}


def test_a_header_message_does_not_grow_with_what_follows(idle: Lab) -> None:
    one, ten, hundred = (max(header_sizes(idle, n)) for n in (1, 10, 100))
    assert hundred - ten <= 8  # the digits of a page's number
    # One job is carried as it is; more are behind one expand.
    assert hundred <= 1.6 * one


def test_a_header_message_does_not_grow_with_a_parallel_that_follows(idle: Lab) -> None:
    def largest(width: int) -> int:
        run = series(
            parallel(noop.s() for _ in range(4)),
            parallel(noop.s() for _ in range(width)),
            noop.s(),
            noop.s(),
        ).engage()
        return max(size(each) for each in of_run(idle, run) if each["headers"]["task"] == "it.noop")

    assert largest(1000) - largest(20) <= 8


def test_results_do_not_travel_in_messages(lab: Lab) -> None:
    def shape(letters: int) -> Clutch:
        return series(value.s("x" * 10), *[parallel(grow(letters) for _ in range(5))], noop.s())

    def grow(letters: int) -> object:
        return lab.app.signature("it.repeat", args=(letters,))

    little, much = sent(lab, shape(10))["bytes"], sent(lab, shape(10_000))["bytes"]
    assert abs(much - little) < 200


def test_plain_tasks_cost_one_message_more(lab: Lab) -> None:
    found = sent(lab, series(plain.s(1), add.s(1, 2), parallel(plain.s(2), plain.s(3)), noop.s()))
    assert found["it.plain"] == 3
    assert found["it.add"] == found["it.noop"] == 1
    assert found["celery_clutch.collect"] == 3
    assert found["n"] == 8
