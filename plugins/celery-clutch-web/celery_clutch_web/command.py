"""``celery -A proj clutch web``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click
from celery.utils.imports import symbol_by_name

from .security import Authorize, is_loopback


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=5560, show_default=True)
@click.option(
    "--authorize",
    metavar="MODULE:FUNCTION",
    help='Takes a request, and returns "view", "steer", "forget" or None.',
)
@click.option("--root-path", default="", help="Where a proxy serves it, such as /clutch.")
@click.pass_obj
def web(obj: Any, host: str, port: int, authorize: str | None, root_path: str) -> None:
    """Serve a page of runs, where they can be looked at and steered.

    On loopback every program of this machine may do so. Elsewhere a function has to say who may.
    """
    import uvicorn

    from .app import dashboard

    loopback = is_loopback(host)
    if not loopback and authorize is None:
        raise click.UsageError(
            f"{host} can be reached from other machines: say with --authorize MODULE:FUNCTION who "
            "may see and steer runs, or leave out --host"
        )
    site = dashboard(
        obj.app, authorize=_function(authorize), loopback=loopback and authorize is None
    )
    config = uvicorn.Config(
        site,
        host=host,
        port=port,
        root_path=root_path.rstrip("/"),
        log_level="warning",
        proxy_headers=authorize is not None,
        server_header=False,
        timeout_graceful_shutdown=1,  # readers that are still there do not keep it from stopping
    )
    bound = config.bind_socket()
    bound.listen(config.backlog)  # who reads the line below can connect
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"http://{shown}:{bound.getsockname()[1]}{config.root_path}/")
    with suppress(KeyboardInterrupt):  # how it is ended; uvicorn has closed everything by then
        uvicorn.Server(config).run([bound])


def _function(name: str | None) -> Authorize | None:
    if name is None:
        return None
    try:
        found = symbol_by_name(name)
    except (AttributeError, ImportError, ValueError) as exc:
        raise click.UsageError(f"--authorize {name}: {exc}") from None
    if not callable(found):
        raise click.UsageError(f"--authorize {name} is no function but {found!r}")
    authorize: Authorize = found
    return authorize
