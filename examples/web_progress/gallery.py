"""A page with a progress bar that follows a clutch, fed by server-sent events.

pip install "celery-clutch[redis]" starlette uvicorn

python gallery.py
    runs everything in this process, with no server besides

python gallery.py --broker redis://localhost:6379/0
    sends the jobs there, to the workers that you start beside it with
    WEB_BROKER=redis://localhost:6379/0 celery -A gallery worker
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from pathlib import Path

import orjson
import uvicorn
from celery import Celery
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from celery_clutch import Clutch, ClutchResult, Status
from celery_clutch.errors import RunNotFound
from celery_clutch.testing import embedded

app = Celery("gallery", task_cls="celery_clutch:ClutchTask")
app.conf.update(
    broker_url=os.environ.get("WEB_BROKER"),
    result_backend=os.environ.get("WEB_BROKER"),
    broker_connection_retry_on_startup=True,
    task_default_queue="celery-clutch-web-progress",
)


# --- the tasks --------------------------------------------------------------------------------


@app.task
def unpack(photos):
    time.sleep(0.5)
    return photos


@app.task(bind=True)
def thumbnail(self, number):
    time.sleep(0.1 + number % 5 / 20)
    if number % 9 == 4 and self.request.retries == 0:
        raise self.retry(exc=OSError(f"photo {number} is locked"), countdown=1.5)
    return f"{number}.webp"


@app.task(bind=True)
def index(self):
    time.sleep(0.5)
    return len(self.previous_results)


def gallery(photos: int) -> Clutch:
    clutch = Clutch(name=f"gallery of {photos}", app=app)
    clutch << unpack.s(photos)
    with clutch.parallel():
        for number in range(photos):
            clutch << thumbnail.s(number)
    clutch << index.s()
    return clutch


# --- the site ---------------------------------------------------------------------------------


async def page(request: Request) -> Response:
    return FileResponse(Path(__file__).with_name("page.html"))


async def start(request: Request) -> Response:
    photos = request.query_params.get("photos", "40")
    if not photos.isdecimal() or not 1 <= int(photos) <= 10_000:
        return JSONResponse({"error": "photos is a number from 1 to 10000"}, status_code=400)
    run = await asyncio.to_thread(gallery(int(photos)).engage)  # sending is Celery's, and blocks
    return JSONResponse({"id": run.id}, status_code=201)


async def events(request: Request) -> Response:
    run = ClutchResult(request.path_params["id"], app)
    try:
        await asyncio.to_thread(run.status)
    except RunNotFound as exc:
        return JSONResponse({"error": str(exc)}, status_code=404)
    return StreamingResponse(stream(run), media_type="text/event-stream")


async def stream(run: ClutchResult) -> AsyncIterator[bytes]:
    """An event for each change of *run*, until it has ended or the reader is gone."""
    async with aclosing(run.awatch()) as changes:
        async for status in changes:
            yield b"data: " + orjson.dumps(told(status)) + b"\n\n"


def told(status: Status) -> dict[str, object]:
    progress = status.progress
    return {
        "name": status.name,
        "state": status.state,
        "done": progress.done,
        "total": progress.total,
        "failing": progress.failing,
        "dead": progress.dead,
        "rate": progress.rate,
        "seconds_left": progress.seconds_left,
        "began": status.created_at,
        "ended": status.ended_at,
        "failures": [f"{failure.address}: {failure.message}" for failure in status.failures[:4]],
    }


async def steer(request: Request) -> Response:
    run = ClutchResult(request.path_params["id"], app)
    action = run.cancel if request.path_params["action"] == "cancel" else run.resume
    try:
        return JSONResponse({"changed": await asyncio.to_thread(action)})
    except RunNotFound as exc:
        return JSONResponse({"error": str(exc)}, status_code=404)


site = Starlette(
    routes=[
        Route("/", page),
        Route("/runs", start, methods=["POST"]),
        Route("/runs/{id}", events),
        Route("/runs/{id}/{action}", steer, methods=["POST"]),
    ]
)


def main() -> None:
    parser = argparse.ArgumentParser(description="A progress bar that follows a clutch.")
    parser.add_argument("--broker", metavar="URL", help="a Redis; workers are yours to start")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if options.broker:
        app.conf.update(broker_url=options.broker, result_backend=options.broker)
    with nullcontext() if options.broker else embedded(app):
        # Readers that are still there do not keep it from stopping.
        uvicorn.run(site, port=options.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
