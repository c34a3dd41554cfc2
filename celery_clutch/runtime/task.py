"""ClutchTask: what happens around a job in the worker, in at most two store round trips.

``begin`` asks whether to run, then comes the task's own function, then ``complete`` or ``fail``,
and what those answer is due is sent. All of it is in ``__call__``: ``on_success`` and the signals
come after Celery has sent the next step (5.3 to 5.7).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry, WorkerShutdown, WorkerTerminate

from .. import signals
from ..compile import canvas, compat, publish, record, values
from ..compile.header import NAME, Header, is_ours
from ..errors import AlreadyEngaged, BuildError, JobLost, ResultError, StoreUnavailable
from ..extend import observers
from ..model import shape
from ..model.data import Data
from ..model.names import Results
from ..model.stop import Stop
from ..stores.base import Verdict
from . import advance, journal
from .attempt import FRESH, Attempt, lost, put_off, too_late
from .growth import Branches, refuse
from .outbox import begins_at

logger = logging.getLogger(__name__)

LATE_AFTER = 30
"""Seconds for which a job's message is put off when the store is away for long."""
LATE_TIMES = 20
"""How often it is put off; about a quarter of an hour in all."""

ATTEMPT = "_clutch_attempt"
"""The attribute of a request that has its `Attempt`."""
CALLED = "_clutch_called"
"""The attribute of a request that says how far the call of its task has come."""
STARTED, RUNNING = "started", "running"
"""A class derived from ClutchTask has begun its own ``__call__``; the task's function runs."""


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
        attempt = current_attempt(self)
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
        attempt = current_attempt(self)
        return _iterate(attempt, chunk) if attempt else iter(())

    @property
    def results(self) -> Results:
        """The values of named steps by name, a mapping: that of a job is its result, that of a
        parallel the list of its branches' values, that of a series the value of its last step.

        It has those that certainly precede the job. Read from the store when they are asked for,
        and kept for this attempt: one round trip for each, and one for the names. Empty outside a
        run.

        Raises:
            NotPreceding: of the name of another step.
            UnknownName: a KeyError; no step has this name.
            MissingResult: the store no longer has the value.
        """
        attempt = current_attempt(self)
        return attempt.results if attempt else Results(dict, lambda shape: None)

    @property
    def branches(self) -> Branches:
        """The parallel or map that the job is in: ``self.branches.add(task.s(...))`` adds branches
        to it. They are there once the job has completed, what follows waits for them too, and
        their results come behind those of the others.

        Raises:
            BuildError: outside a run. At the end of the job, which fails: it is in no parallel, or
                nests clutches as well.
            InvalidStep: what is added is no step.
        """
        attempt = current_attempt(self)
        return Branches(attempt.add_branches if attempt else refuse)

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
        attempt = current_attempt(self)
        return attempt.data if attempt else Data(dict, 0)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let a ``__call__`` of the class run inside the job, whether or not it calls this one.

        Flask's documentation, among others, has one that opens a context and calls ``run``.
        """
        super().__init_subclass__(**options)
        function = cls.__call__
        if not getattr(function, "_clutch", False):
            cls.__call__ = _inside(function)  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        called = getattr(request, CALLED, None)
        # Called by the tracer the request is in place. Called directly, from the task's own
        # function too, Celery makes one.
        if request.called_directly or called == RUNNING:
            return super().__call__(*args, **kwargs)
        setattr(request, CALLED, RUNNING)
        if called == STARTED:  # by the ``__call__`` of a derived class
            return self.run(*args, **kwargs)
        return self._call(self.run, args, kwargs)

    __call__._clutch = True  # type: ignore[attr-defined]

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call *function*; in a run, as the body of the job."""
        request = self.request
        header = Header.of(request)
        if header is None:
            return function(*args, **kwargs)
        attempt = Attempt(self.app, header, request, self.name)
        attempt.function = function
        setattr(request, ATTEMPT, attempt)
        try:
            return self._around(attempt, args, kwargs)
        except StoreUnavailable as exc:
            if exc is attempt.ended_by:  # the job's own, and recorded
                raise
            self._put_off(attempt, exc)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """As in Celery; the arguments of a job are checked by the job, which can fail, not by its
        sender."""
        options = self.job_options(options)
        is_job = _is_job(options) and not self.app.conf.task_always_eager
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
        if expires is None or not _is_job(options):
            return options
        expiry = compat.expiry(self.app, expires)
        return {**options, "expires": None, "headers": {**headers, "expires": expiry}}

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | str | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """As in Celery; the attempt that has failed is recorded before the next one is sent.

        While the broker is away the retry is due, and the job is not dead. What is due is sent by
        the sweep with the arguments of the plan.
        """
        attempt: Attempt | None = getattr(self.request, ATTEMPT, None)
        limit = self.max_retries if max_retries is None else max_retries
        again = (args, kwargs, exc, throw, eta, countdown, max_retries)
        if attempt is None or (limit is not None and attempt.number > limit):
            return super().retry(*again, **options)
        when: Any = eta or countdown
        if not eta and countdown is None:
            when = self.default_retry_delay
        # Celery takes a class or a text for *exc*, too.
        cause = exc if isinstance(exc, BaseException) else Retry(exc=exc, when=when)
        self._retried(attempt, cause, when, _caller())
        return publish.retry_patiently(super().retry, *again, **options)

    def replace(self, sig: Any) -> Any:
        """As in Celery; the value of *sig* becomes the result of the job."""
        attempt = current_attempt(self)
        if attempt is None or (isinstance(sig, compat.Chain) and not sig.tasks):
            return super().replace(sig)  # which refuses an empty chain
        changes = attempt.data.changes()  # may raise; the job has failed then, not left
        attempt.replaced = True
        request, header = self.request, replace(attempt.header, task=attempt.task)
        canvas.drop_own_errbacks(request)
        compiler = canvas.Compiler(self.app, header.origin)
        collect = compiler.collect(header, self._queue(), record.changes_to_json(changes))
        if request.callbacks:
            publish.pass_links(request, collect)
        request.chain = None  # what is due when the job is complete
        errback = self.app.signature(canvas.on_error(attempt.header.to_dict()))
        tasks = [] if request.is_eager or request.errbacks else publish.copied(sig)
        try:
            if not tasks:
                sig.link_error(errback)
                return super().replace(sig | collect)
            for task in tasks:
                task.link_error(errback)
            return publish.replace(self, [*tasks, collect])
        finally:
            if not request.is_eager:
                self._leave(attempt)

    def add_to_chord(self, sig: Any, lazy: bool = False) -> Any:
        """As in Celery; not possible in a job.

        Raises:
            BuildError: in a job.
        """
        if current_attempt(self) is None:
            return super().add_to_chord(sig, lazy)
        raise BuildError(
            "add_to_chord in a job: a parallel of a clutch is no chord of Celery's. "
            "self.branches.add(...) adds a branch to it, Clutch(parent=self) nests a clutch in the "
            "job, and what follows waits for either"
        )

    def _leave(self, attempt: Attempt) -> None:
        """Others stand in the place of the job: no owner has it."""
        header, store = attempt.header, attempt.store
        held = record.Held(replaced=True, generation=header.generation)
        with suppress(StoreUnavailable):
            store.patiently(
                store.checkpoint, header.run, header.at, held.dumps(), header.generation
            )

    def _around(self, attempt: Attempt, args: Any, kwargs: Any) -> Any:
        begun = attempt.begin()
        header = attempt.header
        if begun.verdict is Verdict.DROP:
            raise Ignore(attempt.dropped())
        if begun.verdict is Verdict.DONE:
            return self._repeat(attempt)
        if begun.verdict is Verdict.BUSY:
            self._wait_for_owner(attempt, begun.owner)
        if begun.verdict is Verdict.GIVE_UP:
            raise self._given_up(attempt)
        held = record.Held.loads(begun.held) if begun.held is not None else None
        if held is not None and not (held.replaced and held.generation < header.generation):
            return self._held(attempt, held)
        if header.expires and attempt.number == 1 and time.time() > header.expires:
            late = too_late(header)
            attempt.fail(late, final=True)
            raise late
        observers.emit(attempt.runtime, signals.clutch_job_started, attempt.started_event)
        try:
            value, outcome = self._run(attempt, args, kwargs)
        except Stop as stop:
            return self._stop(attempt, stop.value)
        if attempt.replaced:  # only an eager replace returns; the value has been collected
            return None
        if attempt.nested:
            return self._start_nested(attempt, outcome)
        attempt.complete(outcome)
        self.request.chain = None
        # Celery hands the value to the task's own links; else nothing needs it, by default.
        return value if self.request.callbacks else attempt.kept(outcome.value)

    def _stop(self, attempt: Attempt, value: Any) -> Any:
        """The job has ended the run."""
        attempt.added.clear()
        try:
            outcome = attempt.outcome(value, stops=True)
        except Exception as exc:
            self._failed(attempt, exc)
            raise
        attempt.composed.clear()
        attempt.stop(outcome)
        self.request.chain = None
        return value if self.request.callbacks else attempt.kept(outcome.value)

    def _repeat(self, attempt: Attempt) -> Any:
        """The message is a copy of one whose job has its result."""
        attempt.copied()
        if not attempt.repeat() and not getattr(self.request, "is_eager", False):
            put_off(self, attempt.header, FRESH)
        self.request.chain = self.request.callbacks = None
        return attempt.recorded() if attempt.header.keep else None

    def _held(self, attempt: Attempt, held: record.Held) -> Any:
        """The job has returned before, and waits for others."""
        self.request.chain = self.request.callbacks = None
        if held.replaced:
            why = "other tasks stand in the place of the job; this message is a copy"
            journal.dropped(attempt.header, why)
            raise Ignore(why)
        header = replace(attempt.header, task=attempt.task)
        advance.wait_for_nested(self.app, header, held.dumps())
        return attempt.kept(held.value)

    def _run(self, attempt: Attempt, args: Any, kwargs: Any) -> tuple[Any, record.Held]:
        try:
            if attempt.header.prepend:
                args = (values.previous_value(attempt.store, attempt.header), *args[1:])
            value = attempt.function(*args, **kwargs)
            _warn_of_forgotten(attempt)
            return value, attempt.outcome(value)
        except Retry as exc:
            if not attempt.retried:  # raised by hand, not by ``retry``
                cause = exc.exc if isinstance(exc.exc, BaseException) else exc
                self._retried(attempt, cause, exc.when, exc.__traceback__)
            raise
        except Stop:
            raise
        except Ignore as exc:
            if not attempt.replaced:
                attempt.fail(lost(attempt, "raised Ignore", exc), final=True)
            raise
        except Reject as exc:
            self._rejected(attempt, exc)
            raise
        except SystemExit as exc:
            # Up to Celery 5.6 with billiard 4.3 nobody else tells that the job has left its worker.
            if not _is_stop(exc) and not (self.acks_late and self.reject_on_worker_lost):
                self._failed(attempt, exc)
            raise
        except Exception as exc:
            # "raise self.replace(...)" in eager mode, where it returns, is not a failure.
            if not attempt.replaced and exc is not attempt.away:
                self._failed(attempt, exc)
            raise

    def _failed(self, attempt: Attempt, exc: BaseException) -> None:
        """Record the death of the job."""
        attempt.fail(exc, final=True)
        attempt.ended_by = exc

    def _retried(
        self, attempt: Attempt, cause: BaseException, when: Any, traceback: TracebackType | None
    ) -> None:
        """Record an attempt that is followed by another, *when* Celery is told to send it."""
        countdown = isinstance(when, (int, float))
        due = begins_at({"countdown" if countdown else "eta": when}) or time.time()
        # An exception that was never raised has no traceback.
        traceback = cause.__traceback__ or traceback
        try:
            attempt.fail(cause, final=False, traceback=traceback, retry_at=due)
        except StoreUnavailable as exc:
            attempt.away = exc  # the job is put off, as if it had not run
            raise
        attempt.retried = True

    def _rejected(self, attempt: Attempt, exc: Reject) -> None:
        """The message goes back to the broker, or away."""
        if attempt.retried and isinstance(exc.reason, compat.BROKER_ERRORS):
            # ``retry`` could not send the next attempt (5.3 to 5.7); it is due all the same.
            header = attempt.header
            logger.warning(
                "the retry of job %s of run %s is due, but could not be sent now: %s",
                *(header.at, header.run, exc.reason),
            )
        elif exc.requeue and self.acks_late:
            attempt.release()
        else:
            attempt.fail(lost(attempt, "raised Reject", exc), final=True)

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
        header, store = attempt.header, attempt.store
        created: list[canvas.Prepared] = []
        try:
            for nested in attempt.nested:
                if nested.meta.parent and nested.meta.parent.shares:
                    nested.share(attempt.data.encoded())
                _create_nested(attempt, nested)
                created.append(nested)
        except (AlreadyEngaged, ResultError) as exc:
            for nested in created:
                store.delete(nested.run)
            attempt.fail(exc, final=True)
            raise
        runs = tuple(nested.run for nested in attempt.nested if nested.meta.jobs)
        links = tuple(self.request.callbacks or ())
        generation = header.generation
        data = replace(outcome, runs=runs, links=links, generation=generation).dumps()
        due = [f"nested {run}" for run in runs]
        wanted = store.patiently(
            store.checkpoint, header.run, header.at, data, header.generation, due
        )
        self.request.chain = self.request.callbacks = None
        if not wanted:
            attempt.release()  # a resume runs the job again
            for nested in created:
                store.delete(nested.run)
            raise Ignore(attempt.dropped())
        for nested in attempt.nested:
            journal.engaged(nested.run, nested.meta)
            observers.emit(attempt.runtime, signals.clutch_engaged, nested.engaged)
        if not runs:
            advance.wait_for_nested(self.app, replace(header, task=attempt.task), data)
        else:
            advance.follow(self.app, header.origin, due, {})
        return attempt.kept(outcome.value)

    def _queue(self) -> str | None:
        info = self.request.delivery_info or {}
        queue = info.get("routing_key") if info.get("exchange") == "" else None
        return queue or None

    def _put_off(self, attempt: Attempt, exc: StoreUnavailable) -> None:
        """The store has been away for longer than we wait: send the message again, for later."""
        header = attempt.header
        if header.late >= LATE_TIMES or getattr(self.request, "is_eager", False):
            raise exc
        put_off(self, replace(header, late=header.late + 1), LATE_AFTER)
        logger.warning("job %s of run %s is put off: %s", header.at, header.run, exc)
        raise Ignore(str(exc)) from exc

    def _wait_for_owner(self, attempt: Attempt, owner: str) -> None:
        """Another message of the job runs: put this copy off, for the case that its owner dies."""
        header, lease = attempt.header, attempt.runtime.settings.lease
        logger.info("job %s of run %s is run by %s; a copy waits", header.at, header.run, owner)
        if not getattr(self.request, "is_eager", False):
            put_off(self, header, lease / 2)
        raise Ignore(f"job {header.at} of run {header.run} is run by {owner}")


def _create_nested(attempt: Attempt, nested: canvas.Prepared) -> None:
    """Store a nested run.

    A body that runs again finds the run of the execution before, whose job has not returned: that
    one was never started, and is replaced.

    Raises:
        AlreadyEngaged: a run of this id exists, and belongs to somebody else.
    """
    store = attempt.store
    try:
        store.patiently(nested.create)
        return
    except AlreadyEngaged:
        found = store.patiently(store.read, nested.run)
        known = record.Meta.loads(found.meta).parent if found else None
        own = nested.meta.parent
        if known is None or own is None or known.to_status() != own.to_status():
            raise
    store.patiently(store.delete, nested.run)
    store.patiently(nested.create)


def _caller() -> TracebackType:
    """Where the function that calls this one was called, as a traceback."""
    frame = sys._getframe(2)
    return TracebackType(None, frame, frame.f_lasti, frame.f_lineno)


def previous_results() -> list[Any]:
    """The previous results of the job that runs here, as `ClutchTask.previous_results`.

    Works in any task of a run, also one without ``bind`` and one that is not a ClutchTask; ``[]``
    outside.
    """
    task = compat.current_task()
    attempt = current_attempt(task) if task is not None else None
    return attempt.previous_results() if attempt else []


def current_attempt(task: Any) -> Attempt | None:
    """The attempt of the job that *task* is running, or None outside a run."""
    request = task.request
    attempt: Attempt | None = getattr(request, ATTEMPT, None)
    if attempt is None and (header := Header.of(request)):
        attempt = Attempt(task.app, header, request, task.name)
        if not isinstance(task, ClutchTask):
            setattr(request, ATTEMPT, attempt)
    return attempt


def _is_job(options: dict[str, Any]) -> bool:
    """Whether a message sent with *options* is that of a job."""
    return is_ours((options.get("headers") or {}).get(NAME))


def _inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """The ``__call__`` of a derived class, as the body of the job that the tracer calls."""

    @wraps(function)
    def call(self: ClutchTask, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly or getattr(request, CALLED, None):
            return function(self, *args, **kwargs)
        setattr(request, CALLED, STARTED)
        return self._call(partial(function, self), args, kwargs)

    call._clutch = True  # type: ignore[attr-defined]
    return call


def _warn_of_forgotten(attempt: Attempt) -> None:
    """Say which clutches the job has nested, given steps, and not engaged."""
    header = attempt.header
    for clutch in attempt.composed.values():
        if len(clutch):
            logger.warning(
                "job %s of run %s (%s) has returned without engaging the clutch that it has "
                "nested, so that it does not run: %r. Call its engage().",
                header.at,
                header.run,
                attempt.task,
                clutch,
            )


def _iterate(attempt: Attempt, chunk: int) -> Iterator[Any]:
    members = shape.members(attempt.header.previous)
    for start in range(0, len(members), chunk):
        part = members[start : start + chunk]
        yield from values.read(attempt.store, attempt.header.run, part)


def _is_stop(exc: SystemExit) -> bool:
    """Whether the worker is stopping, or the job was revoked with ``terminate``; both are told of.

    billiard turns the signal for that into an exit code of ``signum - 256``.
    """
    signalled = isinstance(exc.code, int) and -256 < exc.code <= -192
    return signalled or isinstance(exc, (WorkerShutdown, WorkerTerminate))
