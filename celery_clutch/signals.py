"""Observers: pluggy hooks for plugins, and Celery signals of the same names for programs.

::

    from celery_clutch import signals

    @signals.clutch_finished.connect
    def on_finished(sender, event, **kwargs):  # sender is the Celery app
        print(event.run, event.state)

An observer that raises is logged and harms nothing. Nothing is built where nobody listens.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal


def _signal(name: str) -> Signal:
    return Signal(name=name, providing_args={"event"})


clutch_engaged = _signal("clutch_engaged")
clutch_job_started = _signal("clutch_job_started")
clutch_job_finished = _signal("clutch_job_finished")
clutch_job_failed = _signal("clutch_job_failed")
clutch_step_settled = _signal("clutch_step_settled")
clutch_finished = _signal("clutch_finished")
