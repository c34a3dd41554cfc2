"""How a job ends its run."""

from __future__ import annotations


class Stop(Exception):
    """Raised in a job, it ends the run, which has succeeded: ``raise Stop(value)``.

    *value* is the result of the job, and in a list that of the run. What has not started is
    skipped; what runs is let run.
    """

    def __init__(self, value: object = None) -> None:
        super().__init__(value)
        self.value = value
