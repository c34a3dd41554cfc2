"""ClutchTask: what happens around a job in the worker, in at most two store round trips.

``begin`` asks whether to run, then comes the task's own function, then ``complete`` or ``fail``.
All of it is in ``__call__``: ``on_success`` and the signals come after Celery has sent the next
step (5.3 to 5.7).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from celery import Celery, Task, chord
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate

from .. import signals
from ..compile import canvas, compat, pages, publish, record
from ..compile.header import NAME, Header
from ..compile.pages import Expand
from ..errors import AlreadyEngaged, JobLost, ResultError, StoreUnavailable
from ..extend import observers
from ..extend.plugins import runtime
from ..model.data import Data
from ..model.status import State
from ..stores.base import Verdict
from .attempt import Attempt, complete_held, lost, nested_succeeded, too_late

logger = logging.getLogger(__name__)

LATE_AFTER = 30
"""Seconds for which a job's message is put off when the store is away for long."""
LATE_TIMES = 20
"""How often it is put off; about a quarter of an hour in all."""

_ATTEMPT = "_clutch_attempt"


class ClutchTask(Task):
    """The task class of jobs. Outside a run it is Celery's Task.

    Set ``task_cls="celery_clutch:ClutchTask"`` on the app, or ``base=ClutchTask`` on a task.
    """

    abstract = True

    @property
    def previous_results(self) -> list[Any]:
        """The results of the step before, in definition order; ``[]`` for the first job.

        After a parallel step one entry for each branch, else one entry. Read from the store on
        first access and kept for this attempt.

        Raises:
            MissingResult: the store no longer has them.
        """
        attempt = _attempt(self)
        return attempt.previous_results() if attempt else []

    def iter_previous_results(self, chunk: int = 1000) -> Iterator[Any]:
        """The previous results one after another, *chunk* of them read at a time.

        For fan-ins too wide to hold in memory at once.

        Raises:
            ValueError: *chunk* is below 1.
            MissingResult: the store no longer has them.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        attempt = _attempt(self)
        return _iterate(attempt, chunk) if attempt else iter(())

    @property
    def data(self) -> Data:
        """The data that the jobs of the run share: a mutable mapping of JSON values by string.

        What a job changes, inside nested values too, is saved with its result, in one step, and
        only if the job succeeds. Jobs that run side by side do not see each other's changes; theirs
        are merged key by key, and of one key the last to complete wins. Empty outside a run; what
        is changed there is kept nowhere.

        Raises:
            NonJSONData, ResultTooLarge: at the end of the job, which fails, where a value that it
                has changed cannot be stored.
        """
        attempt = _attempt(self)
        return attempt.data if attempt else Data(dict, 0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        header = Header.of(request)
        if header is None:
            # Called by the tracer the request is in place; called directly Celery makes one.
            direct = request.called_directly
            return super().__call__(*args, **kwargs) if direct else self.run(*args, **kwargs)
        if getattr(request, _ATTEMPT, None) is not None:
            return super().__call__(*args, **kwargs)  # the job calls its own task as a function
        attempt = Attempt(self.app, header, request, self.name)
        setattr(request, _ATTEMPT, attempt)
        try:
            return self._around(attempt, args, kwargs)
        except StoreUnavailable as exc:
            self._put_off(attempt, exc)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """As in Celery; the arguments of a job are checked by the job, which can fail, not by its
        sender."""
        options = self.job_options(options)
        is_job = NAME in (options.get("headers") or ()) and not self.app.conf.task_always_eager
        if is_job and not compat.fits(self, args, kwargs):
            return compat.send_unchecked(self, args, kwargs, options)
        return super().apply_async(args, kwargs, **options)

    def job_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """*options* with the expiry of a job known to the worker alone.

        Celery tells the broker, too; RabbitMQ then throws away messages that have expired, and
        nobody learns that the job will not run (5.3 to 5.7).
        """
        headers = options.get("headers") or {}
        expires = options.get("expires", self.expires)
        if expires is None or NAME not in headers:
            return options
        expiry = compat.expiry(self.app, expires)
        return {**options, "expires": None, "headers": {**headers, "expires": expiry}}

    def replace(self, sig: Any) -> Any:
        """As in Celery; the value of *sig* becomes the result of the job."""
        attempt = _attempt(self)
        if attempt is None:
            return super().replace(sig)
        if changes := attempt.data.changes():  # may raise; the job has failed then, not left
            held = record.Held(changes=changes)  # for collect, which completes the job
            store, header = attempt.store, attempt.header
            store.patiently(store.hold, header.run, header.at, held.dumps())
        attempt.replaced = True
        data = attempt.header.to_dict()
        canvas.drop_own_errbacks(self.request)
        compiler = canvas.Compiler(self.app, attempt.header)
        header = replace(attempt.header, task=attempt.task)
        counted = bool(self.request.chord)
        collect = compiler.internal(
            canvas.COLLECT, (), self._queue(), counted, header, immutable=False
        )
        if self.request.callbacks:
            publish.pass_links(self.request, collect)
        errback = self.app.signature(canvas.on_error(data))
        mine = None if self.request.is_eager else publish.copied(sig)
        if mine is not None:
            # Sending what Celery would keep result objects of, whose finalisers can hang a worker
            # child (5.3 and 5.4).
            for task in publish.leaves(mine):
                task.link_error(errback)
            publish.replace(self, publish.followed(mine, [collect]))
            raise Ignore("replaced")
        sig.link_error(errback)
        following = sig | collect
        publish.pass_membership(self.request, following)
        return super().replace(following)

    def _around(self, attempt: Attempt, args: Any, kwargs: Any) -> Any:
        begun = attempt.begin()
        if begun.verdict is Verdict.DROP:
            raise Ignore(f"run {attempt.header.run} was cancelled, resumed or forgotten")
        if begun.verdict is Verdict.DONE:
            attempt.join()
            return publish.follow(self)
        if begun.verdict is Verdict.GIVE_UP:
            raise self._given_up(attempt)
        held = record.Held.loads(begun.held) if begun.held is not None else None
        if held and held.runs:
            return self._wait_for_nested(attempt, held)
        if attempt.header.expires and attempt.number == 1 and time.time() > attempt.header.expires:
            late = too_late(attempt.header)
            attempt.fail(late, final=True)
            raise late
        observers.emit(attempt.runtime, signals.clutch_job_started, attempt.started_event)
        value, outcome = self._run(attempt, args, kwargs)
        if attempt.replaced:  # only an eager replace returns; the value has been collected
            return None
        if attempt.nested:
            return self._start_nested(attempt, outcome)
        attempt.complete(outcome)
        publish.follow(self)
        # Celery hands the value to the task's own links; nothing else needs it.
        return value if self.request.callbacks else None

    def _run(self, attempt: Attempt, args: Any, kwargs: Any) -> tuple[Any, record.Held]:
        try:
            if attempt.header.prepend:
                args = (canvas.previous_value(attempt.store, attempt.header), *args[1:])
            value = self.run(*args, **kwargs)
            return value, attempt.outcome(value)
        except Retry as exc:
            cause = exc.exc if isinstance(exc.exc, BaseException) else exc
            try:
                # An exception that was never raised has no traceback.
                attempt.fail(cause, final=False, traceback=cause.__traceback__ or exc.__traceback__)
            except StoreUnavailable:
                # The retry is on its way already; putting the job off would double it.
                logger.exception("a failed attempt of job %s is not recorded", attempt.header.at)
            raise
        except Ignore as exc:
            if not attempt.replaced:
                attempt.fail(lost(attempt, "raised Ignore", exc), final=True)
            raise
        except Reject as exc:
            # A requeued message comes back, and begin counts how often.
            if not (exc.requeue and self.acks_late):
                attempt.fail(lost(attempt, "raised Reject", exc), final=True)
            raise
        except StoreUnavailable:
            raise
        except SystemExit as exc:
            # Up to Celery 5.6 with billiard 4.3 nobody else tells that the job has left its worker.
            if not _is_stop(exc) and not (self.acks_late and self.reject_on_worker_lost):
                attempt.fail(exc, final=True)
            raise
        except Exception as exc:
            if not attempt.replaced:  # "raise self.replace(...)" in eager mode, where it returns
                attempt.fail(exc, final=True)
            raise

    def _given_up(self, attempt: Attempt) -> JobLost:
        limit = attempt.runtime.settings.max_starts
        exc = JobLost(
            f"job {attempt.header.at} was started {limit} times and ended without an outcome each "
            "time; it seems to kill its worker (clutch_max_starts)"
        )
        attempt.fail(exc, final=True)
        return exc

    def _start_nested(self, attempt: Attempt, outcome: record.Held) -> Any:
        """Store the clutches that the job has engaged, and let it wait for them."""
        header = attempt.header
        try:
            for nested in attempt.nested:
                if nested.shares:
                    nested.share(attempt.data.encoded())
                nested.create()
        except (AlreadyEngaged, ResultError) as exc:
            attempt.fail(exc, final=True)
            raise
        for nested in attempt.nested:
            observers.emit(attempt.runtime, signals.clutch_engaged, nested.engaged)
        held = replace(
            outcome,
            runs=tuple(nested.run for nested in attempt.nested),
            shared=tuple(nested.run for nested in attempt.nested if nested.shares),
        )
        attempt.store.patiently(attempt.store.hold, header.run, header.at, held.dumps())
        if getattr(self.request, "is_eager", False):
            for nested in attempt.nested:
                canvas.run_eagerly(nested.compiler(), nested.first)
            return self._settle_eagerly(attempt, held)
        left = [nested.canvas() for nested in attempt.nested if nested.meta.jobs]
        return self._wait_for(left, attempt, held)

    def _wait_for_nested(self, attempt: Attempt, held: record.Held) -> Any:
        """The job has returned before, and waits for nested runs: send what is left of them."""
        reopened = [reopen(self.app, run) for run in held.runs]
        left = [each for each in reopened if each is not None]
        if getattr(self.request, "is_eager", False):
            for compiler, _ in left:
                canvas.run_eagerly(compiler, [Expand(pages.ROOT)])
            return self._settle_eagerly(attempt, held)
        return self._wait_for([canvas.root_canvas(*each) for each in left], attempt, held)

    def _wait_for(self, nested: list[Any], attempt: Attempt, held: record.Held) -> Any:
        """Replace the job by the canvases of *nested* and what completes it behind them."""
        if not nested:
            complete_held(attempt, held)
            return publish.follow(self)
        compiler = canvas.Compiler(self.app, attempt.header)
        header = replace(attempt.header, task=attempt.task)
        counted = bool(self.request.chord)
        settle = compiler.internal(canvas.SETTLE, (), self._queue(), counted, header)
        attempt.replaced = True
        canvas.drop_own_errbacks(self.request)
        if len(nested) == 1 or not compat.supports_chords(self.app.backend):
            return publish.replace(self, publish.followed(nested[0], [*nested[1:], settle]))
        return publish.replace(self, chord(nested, settle, app=self.app))

    def _settle_eagerly(self, attempt: Attempt, held: record.Held) -> None:
        if nested_succeeded(attempt.store, held):
            complete_held(attempt, held)

    def _queue(self) -> str | None:
        info = self.request.delivery_info or {}
        queue = info.get("routing_key") if info.get("exchange") == "" else None
        return queue or None

    def _put_off(self, attempt: Attempt, exc: StoreUnavailable) -> None:
        """The store has been away for longer than we wait: send the message again, for later."""
        header = attempt.header
        if header.late >= LATE_TIMES or getattr(self.request, "is_eager", False):
            raise exc
        late = replace(header, late=header.late + 1)
        headers = {**(self.request.headers or {}), NAME: late.to_dict()}
        self.signature_from_request(
            self.request, retries=self.request.retries, countdown=LATE_AFTER, headers=headers
        ).apply_async()
        logger.warning("job %s of run %s is put off: %s", header.at, header.run, exc)
        raise Ignore(str(exc)) from exc


def reopen(app: Celery, run: str) -> tuple[canvas.Compiler, record.Meta] | None:
    """Raise the generation of *run*, for what is left of it; None if it is over, or gone."""
    store = runtime(app).store
    found = store.patiently(store.read, run)
    if found is None or found.state is State.SUCCEEDED:
        return None
    sources = (State.RUNNING, State.FAILED, State.CANCELLED)
    if not store.transition(run, sources, State.RUNNING, found.generation):
        return None  # somebody else has just resumed it
    peeked = store.peek(run)
    if peeked is None or peeked[0] is State.SUCCEEDED:
        return None
    meta = record.Meta.loads(found.meta)
    return canvas.Compiler(app, meta.origin(run, found.generation + 1)), meta


def previous_results() -> list[Any]:
    """The previous results of the job that runs here, as `ClutchTask.previous_results`.

    Works in any task of a run, also one without ``bind`` and one that is not a ClutchTask; ``[]``
    outside.
    """
    task = compat.current_task()
    attempt = _attempt(task) if task is not None else None
    return attempt.previous_results() if attempt else []


def _attempt(task: Any) -> Attempt | None:
    request = task.request
    attempt: Attempt | None = getattr(request, _ATTEMPT, None)
    if attempt is None and (header := Header.of(request)):
        attempt = Attempt(task.app, header, request, task.name)
        if not isinstance(task, ClutchTask):
            setattr(request, _ATTEMPT, attempt)
    return attempt


def current_attempt(task: Any) -> Attempt | None:
    """The attempt of the job that *task* is running, or None outside a run."""
    return _attempt(task)


def _iterate(attempt: Attempt, chunk: int) -> Iterator[Any]:
    slots, _ = pages.expand_slots(attempt.header.previous)
    for start in range(0, len(slots), chunk):
        part = slots[start : start + chunk]
        yield from canvas.read_values(attempt.store, attempt.header.run, part)


def _is_stop(exc: SystemExit) -> bool:
    """Whether the worker is stopping, or the job was revoked with ``terminate``; both are told of.

    billiard turns the signal for that into an exit code of ``signum - 256``.
    """
    signalled = isinstance(exc.code, int) and -256 < exc.code <= -192
    return signalled or isinstance(exc, (WorkerShutdown, WorkerTerminate))
