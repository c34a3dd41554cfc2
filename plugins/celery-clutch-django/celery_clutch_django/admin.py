"""Runs in Django's admin: to be looked at, cancelled, resumed and forgotten."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from kombu.exceptions import KombuError, OperationalError

from celery_clutch import ClutchError, ClutchResult, State
from celery_clutch.compile.record import held_runs
from celery_clutch.extend.plugins import runtime
from celery_clutch.handle.tree import Node, of
from celery_clutch.handle.words import duration, progress

from .celery_app import celery_app
from .models import Run
from .store import DjangoStore

NOT_DONE = (ClutchError, KombuError, OperationalError, OSError)
"""What steering a run can end with when the store or the broker does not play along."""

WIDE = 20
"""With more branches or steps than this, a node shows those that need attention,"""

SHOWN = 10
"""at most so many of them."""

PAGE = 100
"""Branches or steps on a page that shows all of them."""

_URGENT = ("dead", "failing", "running", "tolerated")
_ORDER = (*_URGENT, "done", "waiting", "cancelled", "skipped")
_PAST = {"cancel": "cancelled", "resume": "resumed"}
_LIKELY = 20  # names or tags that are offered as filters
_LATEST = 1000  # runs whose tags are counted for that


class StartedFilter(admin.SimpleListFilter):
    title = "started"
    parameter_name = "started"
    _seconds = {"hour": 3600, "day": 86400, "week": 7 * 86400, "month": 30 * 86400}

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("hour", "In the past hour"),
            ("day", "In the past 24 hours"),
            ("week", "In the past 7 days"),
            ("month", "In the past 30 days"),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        seconds = self._seconds.get(self.value() or "")
        return queryset.filter(created_at__gte=time.time() - seconds) if seconds else queryset


class _MostFrequent(admin.SimpleListFilter):
    """The most frequent values, and the one that is chosen."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        found = self.values(model_admin.get_queryset(request))
        chosen = self.value()
        if chosen and chosen not in found:
            found.append(chosen)
        return [(value, value) for value in sorted(found)]

    def values(self, runs: Any) -> list[str]:
        raise NotImplementedError


class NameFilter(_MostFrequent):
    title = "name"
    parameter_name = "called"

    def values(self, runs: Any) -> list[str]:
        names = runs.filter(name__isnull=False).order_by().values_list("name", flat=True)
        return list(names.annotate(n=Count("pk")).order_by("-n")[:_LIKELY])

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(name=self.value()) if self.value() else queryset


class TagFilter(_MostFrequent):
    title = "tag"
    parameter_name = "tagged"

    def values(self, runs: Any) -> list[str]:
        latest = runs.exclude(tags="[]").order_by("-created_at").values_list("tags", flat=True)
        counted = Counter(tag for tags in latest[:_LATEST] for tag in orjson.loads(tags))
        return [tag for tag, _ in counted.most_common(_LIKELY)]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not self.value():
            return queryset
        return queryset.filter(tags__contains=orjson.dumps(self.value()).decode())


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    list_display = ("title", "badge", "bar", "labels", "started", "took")
    list_filter = ("state", NameFilter, TagFilter, StartedFilter)
    list_per_page = 50
    search_fields = ("run", "name", "tags")
    search_help_text = "Part of an id, a name or a tag"
    ordering = ("-created_at", "-run")
    show_full_result_count = False
    actions = ("cancel", "resume")
    delete_confirmation_template = "admin/celery_clutch_django/run/forget.html"
    delete_selected_confirmation_template = "admin/celery_clutch_django/run/forget_selected.html"

    class Media:
        css = {"all": ["celery_clutch_django/admin.css"]}

    # --- who may what ---------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("celery_clutch_django.cancel_run"))

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("celery_clutch_django.resume_run"))

    # --- the list -------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> Any:
        store = _store()
        runs = super().get_queryset(request)
        if not isinstance(store, DjangoStore):
            return runs.none()
        kept = runs.using(store.alias).filter(
            prefix=store.options.prefix, expires_at__gt=time.time()
        )
        return kept.defer("meta")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        store = _store()
        if not isinstance(store, DjangoStore):
            self.message_user(
                request,
                f"The clutches of this Celery app are not in Django's database: {store!r}. Set "
                "clutch_store to django://default to see them here.",
                messages.WARNING,
            )
        return super().changelist_view(request, {"title": "Runs", **(extra_context or {})})

    @admin.display(description="run", ordering="name")
    def title(self, run: Run) -> Any:
        named = format_html("{}<br>", run.name) if run.name else ""
        return format_html(
            '{}<span class="clutch-id" title="{}">{}</span>', named, run.run, run.run
        )

    @admin.display(description="state", ordering="state")
    def badge(self, run: Run) -> Any:
        return format_html(
            '<span class="clutch-badge clutch-{}">{}</span>', run.state.lower(), run.state
        )

    @admin.display(description="progress")
    def bar(self, run: Run) -> Any:
        return format_html(
            '<progress class="clutch-progress clutch-{}" max="{}" value="{}"></progress>'
            '<span class="clutch-quiet">{}</span>',
            run.state.lower(),
            run.jobs or 1,
            run.done if run.jobs else 1,
            progress(run),
        )

    @admin.display(description="tags")
    def labels(self, run: Run) -> Any:
        tags = orjson.loads(run.tags)
        return format_html_join(" ", '<span class="clutch-tag">{}</span>', ((tag,) for tag in tags))

    @admin.display(description="started", ordering="created_at")
    def started(self, run: Run) -> str:
        return str(date_format(moment(run.created_at), "SHORT_DATETIME_FORMAT"))

    @admin.display(description="duration")
    def took(self, run: Run) -> str:
        return duration((run.ended_at or time.time()) - run.created_at)

    # --- actions --------------------------------------------------------------------------

    def get_actions(self, request: HttpRequest) -> Any:
        actions = super().get_actions(request)
        if "delete_selected" in actions:
            _, name, _ = actions["delete_selected"]
            actions["delete_selected"] = (_forget_selected, name, "Forget selected runs")
        return actions

    @admin.action(description="Cancel selected runs", permissions=["cancel"])
    def cancel(self, request: HttpRequest, queryset: Any) -> None:
        self._steer(request, queryset, "cancel", ClutchResult.cancel)

    @admin.action(description="Resume selected runs", permissions=["resume"])
    def resume(self, request: HttpRequest, queryset: Any) -> None:
        self._steer(request, queryset, "resume", ClutchResult.resume)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        context = {"title": "Forget run", "subtitle": None, **(extra_context or {})}
        return super().delete_view(request, object_id, context)

    def delete_model(self, request: HttpRequest, obj: Run) -> None:
        self._forget(request, [obj])

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        self._forget(request, list(queryset))

    def get_deleted_objects(
        self, objs: Iterable[Run], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        runs = [str(run) for run in objs]  # what goes with them is nobody's to choose
        denied = set() if self.has_delete_permission(request) else {"run"}
        return runs, {"runs": len(runs)}, denied, []

    def _steer(
        self, request: HttpRequest, runs: Iterable[Run], verb: str, do: Callable[..., bool]
    ) -> None:
        selected = list(runs)

        def steer() -> None:
            moved = self._each(request, selected, _PAST[verb], do)
            if done := moved.count(True):
                self.message_user(request, f"{_runs(done)} {_PAST[verb]}.", messages.SUCCESS)
            if left := moved.count(False):
                said = f"{_runs(left)} left alone: there is nothing to {verb}."
                self.message_user(request, said, messages.WARNING)

        _after_commit(steer)

    def _forget(self, request: HttpRequest, runs: list[Run]) -> None:
        _after_commit(lambda: self._each(request, runs, "forgotten", ClutchResult.forget))

    def _each(
        self, request: HttpRequest, runs: Iterable[Run], past: str, do: Callable[..., bool]
    ) -> list[bool]:
        """Do something with each of *runs*, and say what could not be done; the other answers."""
        answers = []
        for run in runs:
            try:
                answers.append(do(_handle(run)))
            except NOT_DONE as exc:
                problem = f"{run} could not be {past}: {exc}"
                self.message_user(request, problem, messages.ERROR)
        return answers

    # --- the page of a run ------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        run = self.get_object(request, unquote(object_id))
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        if run is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)
        if request.method == "POST":
            return self._post(request, run)
        try:
            context = self._looked_at(request, run)
        except (*NOT_DONE, LookupError, ValueError) as exc:
            context = {"problem": str(exc) or repr(exc)}
        context = {
            **self.admin_site.each_context(request),
            "title": run.name or run.run,
            "original": run,
            "has_view_permission": True,
            "opts": self.opts,
            "media": self.media,
            "run": run,
            "badge": self.badge(run),
            "progress": self.bar(run),
            "tags": self.labels(run),
            "started": moment(run.created_at),
            "updated": moment(run.updated_at),
            "ended": run.ended_at and moment(run.ended_at),
            "expires": moment(run.expires_at),
            "duration": self.took(run),
            "may_cancel": self.has_cancel_permission(request) and run.state in _CANCELLABLE,
            "may_resume": self.has_resume_permission(request) and run.state != State.SUCCEEDED,
            "may_forget": self.has_delete_permission(request, run),
            **context,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/celery_clutch_django/run/page.html", context)

    def _post(self, request: HttpRequest, run: Run) -> HttpResponse:
        if "cancel" in request.POST and self.has_cancel_permission(request):
            self._steer(request, [run], "cancel", ClutchResult.cancel)
        elif "resume" in request.POST and self.has_resume_permission(request):
            self._steer(request, [run], "resume", ClutchResult.resume)
        else:
            raise PermissionDenied
        return HttpResponseRedirect(request.path)

    def _looked_at(self, request: HttpRequest, run: Run) -> dict[str, Any]:
        store, handle = _store(), _handle(run)
        found = store.read(run.run)
        if found is None:
            raise LookupError("it has just been forgotten, or has expired")
        tree = of(store, handle.plan(), found)
        waits = {at: [self._link(name) for name in runs] for at, runs in held_runs(found).items()}
        at, start = request.GET.get("at"), int(request.GET.get("from", 0))
        if at is None:
            top = _row(tree.root, waits, _collapsed(tree.root))
        else:
            node = _node_at(tree.root, at)
            top = _row(node, waits, node.below[start : start + PAGE])
        known = {node.address for node in tree.walk()}
        data = store.data(run.run) or {}
        return {
            "status": tree.status,
            "tree": top,
            "at": at,
            "first": start + 1,
            "last": start + len(top["below"]),
            "before": max(start - PAGE, 0) if start else None,
            "after": start + PAGE if at is not None and top["hidden"] > start else None,
            "elsewhere": [each for each in tree.status.failures if each.address not in known],
            "data": {key: _pretty(value) for key, value in sorted(data.items())},
            "parent": tree.status.parent and self._link(tree.status.parent["run"]),
        }

    def _link(self, run: str) -> dict[str, str | None]:
        """A run, and the page that shows it, if there is one."""
        store = _store()
        found = Run.objects.using(store.alias).filter(prefix=store.options.prefix, run=run)
        pk = found.values_list("pk", flat=True).first()
        url = pk and reverse(
            "admin:celery_clutch_django_run_change",
            args=[pk],
            current_app=self.admin_site.name,
        )
        return {"run": run, "url": url}


def _after_commit(do: Callable[[], object]) -> None:
    """Call *do* when the transaction of the request, if it has one, is over: what is sent before
    finds the run as it was. Messages to the user can still be added then."""
    transaction.on_commit(do, using=_store().alias)


def _forget_selected(site: RunAdmin, request: HttpRequest, runs: Any) -> Any:
    response = delete_selected(site, request, runs)
    if response is not None:  # it asks first
        response.context_data["title"] = "Forget runs"
    return response


_CANCELLABLE = (State.RUNNING, State.FAILED)


def _store() -> Any:
    return runtime(celery_app()).store


def _handle(run: Run) -> ClutchResult:
    return ClutchResult(run.run, celery_app())


def _runs(count: int) -> str:
    return "1 run was" if count == 1 else f"{count} runs were"


def moment(timestamp: float) -> datetime:
    """*timestamp* as the admin shows times."""
    zone = timezone.get_current_timezone() if settings.USE_TZ else None
    return datetime.fromtimestamp(timestamp, zone)


def _pretty(value: bytes) -> str:
    """A value of the shared data, and no more of it than fits a page."""
    text = orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    return str(Truncator(text).chars(2000))


def _node_at(root: Node, address: str) -> Node:
    """The node at *address*.

    Raises:
        LookupError: there is none.
    """
    node, place = root, ""
    for part in address.split(".") if address else ():
        place = f"{place}.{part}" if place else part
        found = next((each for each in node.below if each.address == place), None)
        if found is None:
            raise LookupError(f"the plan has no address {address!r}")
        node = found
    return node


def _collapsed(node: Node) -> Sequence[Node]:
    """What is below *node*, or as much of it as needs attention, the worst first."""
    if len(node.below) <= WIDE:
        return node.below
    urgent = [each for each in node.below if _worst(each) < len(_URGENT)]
    return sorted(urgent, key=_worst)[:SHOWN]


def _worst(node: Node) -> int:
    return min((i for i, state in enumerate(_ORDER) if node.states.get(state)), default=len(_ORDER))


def _row(
    node: Node, waits: Mapping[str, list[dict[str, str | None]]], below: Sequence[Node]
) -> dict[str, Any]:
    """A node, and those of *below* it, in the words of the template."""
    attempt, started, seconds = node.timing() if node.kind == "job" else (None, None, None)
    took = None if seconds is None else duration(seconds)
    if took is None and started is not None and node.state == "running":
        took = f"{duration(max(time.time() - started, 0))} so far"
    counts = [f"{node.states[state]:,} {state}" for state in _ORDER if node.states.get(state)]
    return {
        "node": node,
        "attempt": attempt,
        "started": started and moment(started),
        "took": took,
        "counts": ", ".join(counts),
        "waits": waits.get(node.address, []),
        "below": [_row(each, waits, _collapsed(each)) for each in below],
        "hidden": len(node.below) - len(below),
    }
