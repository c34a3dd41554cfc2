from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from celery_clutch.errors import ClutchError

from ...tasks import prune


class Command(BaseCommand):
    help = "Deletes runs that have expired (clutch_ttl and the like) from the result store."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--limit", type=int, default=10_000, help="at most so many (default: 10000)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            pruned = prune.run(limit=options["limit"])
        except ClutchError as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(f"deleted {pruned} expired run{'s'[: pruned != 1]}")
