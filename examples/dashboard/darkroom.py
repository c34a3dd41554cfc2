"""A dashboard with something going on: runs that succeed, fail, are tried again, nest and wait.

pip install celery-clutch-web

python darkroom.py
    runs everything in this process, with no server besides
"""

from __future__ import annotations

import argparse
import random
import threading
import time

import uvicorn
from celery import Celery
from celery_clutch_web import dashboard

from celery_clutch import Clutch
from celery_clutch.testing import embedded

app = Celery("darkroom", task_cls="celery_clutch:ClutchTask")
app.conf.task_default_queue = "darkroom"


# --- the tasks --------------------------------------------------------------------------------


@app.task(name="photos.fetch")
def fetch(album):
    time.sleep(random.uniform(0.05, 0.4))
    return {"album": album, "from": f"s3://albums/{album}"}


@app.task(name="photos.resize")
def resize(number, width=1600):
    time.sleep(random.lognormvariate(-2.2, 0.7))
    return f"{number}-{width}.webp"


@app.task(name="photos.scan", bind=True)
def scan(self, number):
    time.sleep(random.uniform(0.05, 0.3))
    if number % 5 == 2 and self.request.retries < 2:
        raise self.retry(
            exc=ConnectionError(f"the scanner is busy with photo {number}"), countdown=6
        )
    return "clean"


@app.task(name="photos.develop")
def develop(number, paper="matt"):
    time.sleep(random.uniform(0.05, 0.2))
    if number % 7 == 3:
        raise OSError(f"tray {number} has run dry")
    return f"{number}.{paper}"


@app.task(name="albums.publish", bind=True)
def publish(self, album):
    self.data["published"] = album
    letters = Clutch(name=f"letters for {album}", parent=self)
    with letters.parallel():
        for reader in ("ada", "grace", "edsger", "barbara"):
            letters << send.s(reader, album)
    letters.engage()
    return f"https://photos.example/{album}"


@app.task(name="letters.send")
def send(reader, album):
    time.sleep(random.uniform(0.2, 1.5))
    return f"{reader} knows of {album}"


@app.task(name="albums.archive")
def archive(album):
    time.sleep(random.uniform(0.3, 0.9))
    return f"{album}.tar"


# --- the clutches -----------------------------------------------------------------------------


def album(name: str, photos: int) -> Clutch:
    clutch = Clutch(name=f"album {name}", tags=["album"], app=app)
    clutch << fetch.s(name)
    with clutch.parallel():
        with clutch.series():
            with clutch.parallel():
                for number in range(photos):
                    clutch << resize.s(number)
        with clutch.series():
            clutch << scan.s(1)
            clutch << scan.s(2)
    clutch << publish.s(name)
    with clutch.parallel():
        clutch << archive.s(name)
        clutch << send.s("the editor", name)
    return clutch


def prints(number: int) -> Clutch:
    """One print in seven fails for good."""
    clutch = Clutch(name="prints", tags=["prints", "nightly"], app=app)
    clutch << fetch.s(f"roll {number}")
    with clutch.parallel():
        for each in range(number, number + 6):
            clutch << develop.s(each)
    clutch << archive.s(f"roll {number}")
    return clutch


def later(name: str) -> Clutch:
    clutch = Clutch(name="reminder", tags=["letters"], app=app)
    clutch << fetch.s(name)
    clutch << send.s("everybody", name).set(countdown=3600)
    return clutch


NAMES = ("lisbon", "oslo", "kyoto", "quito", "accra", "hobart", "tartu", "bergen")


def work(over: threading.Event, seconds: float) -> None:
    """Engage clutches until it is *over*, one every so many *seconds*."""
    later("the exhibition").engage()
    prints(20).engage().cancel()
    number = 0
    while not over.wait(seconds if number > 3 else 0.2):
        number += 1
        if number % 3 == 0:
            prints(number).engage()
        else:
            album(random.choice(NAMES), random.choice((4, 12, 40))).engage()


def main() -> None:
    parser = argparse.ArgumentParser(description="A dashboard with something going on.")
    parser.add_argument("--port", type=int, default=5560)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two clutches")
    options = parser.parse_args()
    over = threading.Event()
    with embedded(app, concurrency=6):
        worker = threading.Thread(target=work, args=(over, options.every), daemon=True)
        worker.start()
        print(f"http://127.0.0.1:{options.port}/", flush=True)
        site = dashboard(app, loopback=True)
        # Readers that are still there do not keep it from stopping.
        uvicorn.run(site, port=options.port, log_level="warning", timeout_graceful_shutdown=1)
        over.set()
        worker.join()


if __name__ == "__main__":
    main()
