"""The ``clutch`` header: all that a message knows of its run.

Celery keeps custom headers across retries, but not across ``replace()``, and does not pass them to
the next step (5.3 to 5.7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ..errors import CorruptRecord
from ..stores.base import TURNS, Settles
from .pages import Item, Role, is_header, role_from_json, text_of

NAME = "clutch"

_RESTORED = frozenset(("run", "gen", "page", "due", "next", "expires", "context"))
"""What the jobs of a chain have in common, or can be told from their order."""


@dataclass(frozen=True, slots=True)
class Header(Role):
    """Where a job belongs, and its `Role` there.

    Attributes:
        run, generation: the run.
        at: the job's address.
        page: the page that it is in.
        next: the address of the job behind it in its chain, or "".
        receipts: what is no longer due when the message begins.
        prepend: the previous result is its first argument.
        task: the job's task, where the message is of another.
        expires: when it is too late to start, in seconds since the epoch; 0 for never.
        context: what observers sent along.
        late: how often the message was put off because the store was away.
        keep: the job's value is for Celery's result backend, too.
    """

    run: str
    generation: int
    at: str = ""
    page: str = ""
    next: str = ""
    receipts: tuple[str, ...] = ()
    prepend: bool = False
    task: str = ""
    expires: float = 0.0
    context: Mapping[str, str] = field(default_factory=dict, hash=False)
    late: int = 0
    keep: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Short, for the message: what is empty is left out."""
        data: dict[str, Any] = {"run": self.run, "gen": self.generation, "at": self.at}
        data["page"] = self.page
        data.update(self.role_to_json())
        if self.receipts:
            data["due"] = list(self.receipts)
        for name in ("next", "task", "expires", "late"):
            if value := getattr(self, name):
                data[name] = value
        if self.prepend:
            data["prepend"] = 1
        if self.keep:
            data["keep"] = 1
        if self.context:
            data["context"] = dict(self.context)
        return data

    def abbreviated(self) -> dict[str, Any]:
        """`to_dict` without what `restored` knows from the job before in its chain."""
        return {key: value for key, value in self.to_dict().items() if key not in _RESTORED}

    def restored(self, data: Mapping[str, Any], following: str) -> dict[str, Any]:
        """What `abbreviated` has made of the header of the job behind this one, made whole.

        Args:
            data: what `abbreviated` has made.
            following: the address of the job behind that, or "".
        """
        whole = {"run": self.run, "gen": self.generation, "page": self.page, **data}
        whole["due"] = [job_due(self.page, data["at"])]
        if following:
            whole["next"] = following
        if self.expires:
            whole["expires"] = self.expires
        if self.context:
            whole["context"] = dict(self.context)
        return whole

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Header:
        """What `to_dict` wrote.

        Raises:
            CorruptRecord: *data* is something else.
        """
        try:
            return cls(
                run=text_of(data["run"]),
                generation=int(data["gen"]),
                at=text_of(data["at"]),
                page=text_of(data["page"]),
                next=text_of(data.get("next", "")),
                receipts=tuple(map(text_of, data.get("due", ()))),
                prepend=bool(data.get("prepend")),
                task=text_of(data.get("task", "")),
                expires=float(data.get("expires", 0.0)),
                context=dict(data.get("context", {})),
                late=int(data.get("late", 0)),
                keep=bool(data.get("keep")),
                **role_from_json(data),
            )
        except (
            *(AttributeError, IndexError, KeyError, OverflowError),
            *(RecursionError, TypeError, ValueError),
        ) as exc:
            raise CorruptRecord(
                f"the header {NAME!r} of a message cannot be read: {exc!r}"
            ) from None

    @classmethod
    def of(cls, request: Any) -> Header | None:
        """The header of a request; None outside a run.

        Raises:
            CorruptRecord: the header is ours, and cannot be read.
        """
        data = getattr(request, NAME, None)
        if data is None:  # eager requests have custom headers in `headers` only
            headers = getattr(request, "headers", None)
            data = headers.get(NAME) if isinstance(headers, Mapping) else None
        return cls.from_dict(data) if is_ours(data) else None

    @classmethod
    def of_item(cls, origin: Header, page: str, item: Item, **own: Any) -> Header:
        """The header for an item of a page of the run that *origin* stands for."""
        return cls(
            origin.run,
            origin.generation,
            at=item.at,
            page=page,
            previous=item.previous,
            settles=item.settles,
            barriers=item.barriers,
            narrow=item.narrow,
            prepend=bool(item.job.prepend and item.previous),
            tolerances=item.tolerances,
            choices=item.choices,
            gives=item.gives,
            expires=origin.expires,
            context=origin.context,
            **own,
        )

    @property
    def origin(self) -> Header:
        """What all headers of the run have in common."""
        return Header(self.run, self.generation, expires=self.expires, context=self.context)

    @property
    def due(self) -> str:
        """What is due while a message of this job is to come."""
        return job_due(self.page, self.at)

    @property
    def unless(self) -> tuple[tuple[str, int], ...]:
        """The barriers that make the job superfluous before it has started; see `Claim`."""
        return tuple((each.step, each.need) for each in self.tolerances if each.first and each.need)

    def turn(self, request: Any) -> int:
        """The turn of the message of *request*; see `stores.base.TURNS`."""
        return int(getattr(request, "retries", 0) or 0) * TURNS + self.late

    def settled_by_failure(self, *, loud: bool = True, final: bool = False) -> tuple[Settles, ...]:
        """The steps that a failure settles: the nearest is the one to report it.

        A *final* one settles the headers of chords that the job is in, too, as steps by the name
        of ``"A!"``.
        """
        found: list[Settles] = []
        for each in self.settles.split():
            step, _, width = each.partition("*")
            if is_header(step):
                if final:
                    branch = self.at[len(step) :].partition(".")[0]
                    found.append(Settles(step, f"{step[:-1]}.{branch}", int(width)))
                continue
            member = step
            if step != self.at:
                branch = self.at[len(step) + 1 :].partition(".")[0]
                member = f"{step}.{branch}"
            found.append(Settles(step, member, int(width), loud and not found))
        return tuple(found)

    def settles_alone(self) -> Settles | None:
        """The step that has the job as its only member; nobody waits for it but observers."""
        if self.settles.startswith(f"{self.at}*1"):
            return Settles(self.at, self.at, 1)
        return None


def is_ours(data: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether *data*, what a message has under our name, is a header of ours.

    Others may use the name for something else.
    """
    return isinstance(data, Mapping) and data.keys() >= {"run", "gen", "at"}


def job_due(page: str, address: str) -> str:
    """What is due while a message of a job is to come."""
    return f"job {page} {address}"


def job_of(key: str) -> str:
    """The address of the job whose message is due by this *key*; "" of what else is due."""
    kind, _, rest = key.partition(" ")
    return rest.partition(" ")[2] if kind == "job" else ""
