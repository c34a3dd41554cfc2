"""Every exception that celery-clutch raises on purpose.

::

    ClutchError
    ├── BuildError             what was composed cannot be run
    │   ├── InvalidStep        not a signature, a task, (task, *args) or a clutch (also TypeError)
    │   ├── InvalidParent      ``parent=`` is not a running ClutchTask (also TypeError)
    │   ├── InvalidName        an id, name or tag that cannot be one, or is taken (also ValueError)
    │   ├── InvalidOption      an option that Celery cannot send with (also ValueError)
    │   ├── InvalidSequence    a `Sequence` class that is not as it has to be (also TypeError)
    │   ├── PlanTooDeep        nested further than a plan may be
    │   └── NonJSONArgument    an argument or option that JSON cannot carry (also TypeError)
    ├── ConfigurationError     the app cannot run clutches as it is set up
    │   ├── NoApp              there is no Celery app but Celery's own fallback
    │   ├── NoStore            no ``clutch_store`` and no Redis to derive it from
    │   ├── UnknownStore       no store is registered for the URL's scheme
    │   ├── MissingExtra       the store's client library is not installed (also ImportError)
    │   └── PluginError        a plugin that does not load, or claims a taken scheme
    ├── StoreError
    │   ├── StoreUnavailable   the store cannot be reached (also ConnectionError)
    │   └── CorruptRecord      what the store holds is not what celery-clutch wrote
    ├── ResultError
    │   ├── NonJSONResult      a job returned what JSON cannot represent (also TypeError)
    │   ├── NonJSONData        shared data that JSON cannot represent (also TypeError)
    │   ├── ResultTooLarge     a job returned over ``clutch_max_result_bytes`` (also ValueError)
    │   ├── NotAList           what a map is made of is no list (also TypeError)
    │   ├── NoSuchChoice       what a task has decided is no option (also LookupError)
    │   ├── MissingResult      a result is not in the store; it says why (also LookupError)
    │   └── NotPreceding       a job reads what need not be there yet (also LookupError)
    ├── JobLost                a job ended without an outcome (ignored, given up, its worker gone)
    ├── NestedClutchFailed     a clutch nested in a running job has failed
    └── RunError
        ├── UnknownAddress     the plan of the run has no such address (also LookupError)
        │   └── UnknownName    no step of the run has this name (also KeyError)
        ├── RunNotFound        no such run: never engaged, forgotten or expired (also LookupError)
        ├── AlreadyEngaged     a run with this id exists
        ├── ClutchFailed       ``get`` on a run that has failed; carries ``failures``
        │   └── ClutchExpired  its jobs had not started by the deadline (``Clutch(expires=)``)
        ├── ClutchCancelled    ``get`` on a run that was cancelled
        ├── ClutchTimeout      ``get`` waited in vain; carries ``reasons`` (also TimeoutError)
        └── GetInsideTask      ``get`` inside a task would block the worker
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model.reason import Reason
    from .model.status import Failure


class ClutchError(Exception):
    """The root of everything celery-clutch raises on purpose."""


class BuildError(ClutchError):
    """What was composed cannot be run."""


class InvalidStep(BuildError, TypeError):
    """Something that is not a step was added to a clutch."""


class InvalidParent(BuildError, TypeError):
    """``parent=`` must be the running ClutchTask itself (``self`` of a bound task)."""


class InvalidName(BuildError, ValueError):
    """An id, name or tag has characters, or a length, that are not allowed, or two steps have one
    name."""


class InvalidOption(BuildError, ValueError):
    """An option of a job, of a handler or of ``engage`` that Celery cannot send, or that belongs
    elsewhere."""


class InvalidSequence(BuildError, TypeError):
    """A `Sequence` class is not as it has to be."""


class PlanTooDeep(BuildError):
    """Steps are nested further than a plan may be."""


class NonJSONArgument(BuildError, TypeError):
    """An argument or option of a job cannot be carried by JSON."""


class ConfigurationError(ClutchError):
    """The app cannot run clutches as it is set up."""


class NoApp(ConfigurationError):
    """There is no Celery app in this process but the one that Celery falls back to."""


class NoStore(ConfigurationError):
    """There is no ``clutch_store`` and no Redis to derive one from."""


class UnknownStore(ConfigurationError):
    """No store is registered for the scheme of ``clutch_store``."""


class MissingExtra(ConfigurationError, ImportError):
    """The client library that a store needs is not installed."""


class PluginError(ConfigurationError):
    """A plugin does not load, or claims what another one has."""


class StoreError(ClutchError):
    """The result store did not do what it was asked."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached; nothing is known about what it did."""


class CorruptRecord(StoreError):
    """What the store holds is not what celery-clutch wrote."""


class ResultError(ClutchError):
    """A job's result cannot be stored or read."""


class NonJSONResult(ResultError, TypeError):
    """A job returned a value that JSON cannot represent."""


class NonJSONData(ResultError, TypeError):
    """A value of the shared data cannot be represented by JSON, or a key is not one."""


class ResultTooLarge(ResultError, ValueError):
    """A result, or a value of the shared data, is larger than ``clutch_max_result_bytes``."""


class NotAList(ResultError, TypeError):
    """What a map is made of is no list.

    Attributes:
        address: that of the map, where its list has been there for long.
    """

    def __init__(self, message: str = "", address: str = "") -> None:
        super().__init__(message)
        self.address = address


class NoSuchChoice(ResultError, LookupError):
    """What a task has decided is no option."""


class MissingResult(ResultError, LookupError):
    """A result is not in the store; the message says why.

    Attributes:
        address: of the job whose result it is, if that is known.
    """

    def __init__(self, message: str = "", address: str = "") -> None:
        super().__init__(message)
        self.address = address


class NotPreceding(ResultError, LookupError):
    """A job reads the result of a named step that does not certainly precede it."""


class JobLost(ClutchError):
    """A job ended without an outcome: its worker went away, or it ignored itself."""


class NestedClutchFailed(ClutchError):
    """A clutch nested in a running job has failed, and so has the job."""


class RunError(ClutchError):
    """A run is not in a state to do what was asked of it."""


class RunNotFound(RunError, LookupError):
    """There is no such run: it was never engaged, was forgotten or has expired."""


class UnknownAddress(RunError, LookupError):
    """The plan of the run has no such address."""


class UnknownName(UnknownAddress, KeyError):
    """No step of the run has this name."""

    __str__ = Exception.__str__  # that of KeyError puts the message in quotes


class AlreadyEngaged(RunError):
    """A run with this id exists already."""


class ClutchFailed(RunError):
    """The run has failed; ``failures`` says which jobs and why, the first 20 by address, and
    ``failure_count`` how many there are."""

    def __init__(
        self, message: str, failures: Sequence[Failure] = (), failure_count: int | None = None
    ) -> None:
        super().__init__(message)
        self.failures = list(failures)
        self.failure_count = len(self.failures) if failure_count is None else failure_count


class ClutchExpired(ClutchFailed):
    """What the run consists of had not started by its deadline."""


class ClutchCancelled(RunError):
    """The run was cancelled."""


class ClutchTimeout(RunError, TimeoutError):
    """The run did not end within the time given; ``reasons`` says why, as `ClutchResult.why`."""

    def __init__(self, message: str, reasons: Sequence[Reason] = ()) -> None:
        super().__init__(message)
        self.reasons = list(reasons)


class GetInsideTask(RunError):
    """Waiting for a run inside a task would block the worker it may need."""
