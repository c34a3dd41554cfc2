"""How clutches and runs draw themselves in a notebook."""

from __future__ import annotations

from celery import Celery

from celery_clutch import Clutch, ClutchTask, parallel


def test_a_clutch_and_a_run_are_drawn(eager: Celery) -> None:
    @eager.task(name="<fine>", bind=True)
    def fine(self: ClutchTask) -> None: ...

    @eager.task(name="broken", bind=True)
    def broken(self: ClutchTask) -> None:
        raise ValueError("broken")

    clutch = Clutch(fine, parallel(fine, broken), fine, name="a & b")
    drawn = clutch._repr_html_()
    assert "a &amp; b" in drawn
    assert drawn.count("&lt;fine&gt;") == 3
    assert "<fine>" not in drawn and "<script" not in drawn
    run = clutch.engage()
    live = run._repr_html_()
    assert f"{run.id} FAILED" in live
    assert live != drawn
    assert live.count("&lt;fine&gt;") == 3
