"""The gallery as an ASGI application, and the server that runs it on this machine."""

import errno
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from dreamcore.errors import DreamgridError, InvalidInput, Unavailable
from flows.gallery import downloads, marks_page, pages, pictures
from flows.gallery.context import FOLDER, render
from flows.gallery.favourites_page import favourites
from flows.gallery.grid_page import grid, news
from flows.gallery.job_page import cost, job, job_now, start_job, stop_job
from flows.gallery.loupe_page import loupe
from flows.gallery.ratios import stylesheet
from flows.gallery.scores_page import scores
from flows.gallery.security import Access, Guard
from flows.gallery.site import Site
from flows.s3.storage import Storage

__all__ = ["create_app", "listen", "serve"]

_STOP_SECONDS = 2
"""How long a stopped server waits for the pictures that it is sending."""


def create_app(destinations: Sequence[str], storage: Storage, access: Access | None = None) -> Starlette:
    """Return the gallery of these destinations.

    Args:
        destinations: folders of results.
        storage: access to S3.
        access: who may use the gallery; by default, this machine.
    """
    access = access or Access()
    app = Starlette(
        routes=_routes(),
        middleware=[Middleware(Guard, access=access), Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)],
        exception_handlers={HTTPException: _show_http_error, DreamgridError: _show_error},
    )
    app.state.access = access
    app.state.site = Site(destinations, storage, read_only=access.read_only)
    return app


def _routes() -> list[BaseRoute]:
    in_place = {
        "": pages.open_place,
        "library": pages.library,
        "grid": grid,
        "news": news,
        "favourites": favourites,
        "favourites.zip": downloads.originals,
        "share.zip": downloads.share_pack,
        "loupe": loupe,
        "job": job,
        "job/cost": cost,
        "job/now": job_now,
        "failures": pages.failures,
        "runs": pages.runs,
        "scores": scores,
        "now": pages.now,
        "dream/{result_id}": pages.dream,
        "marks": marks_page.news,
        "thumb/{result_id}.webp": pictures.thumb,
        "full/{result_id}": pictures.full,
        "photograph/{result_id}": pictures.photograph,
        "photograph/{result_id}/small": pictures.photograph_thumb,
    }
    return [
        Route("/", pages.home),
        *(Route(f"/d/{{slug}}/{path}", handler) for path, handler in in_place.items()),
        Route("/d/{slug}/mark", marks_page.mark, methods=["POST"]),
        Route("/d/{slug}/job/start", start_job, methods=["POST"]),
        Route("/d/{slug}/job/stop", stop_job, methods=["POST"]),
        Route("/static/ratios.css", lambda _: Response(stylesheet(), media_type="text/css")),
        Mount("/static", StaticFiles(directory=FOLDER / "static")),
    ]


def _show_http_error(request: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 500)
    text = getattr(error, "detail", "")
    title = {404: "Not found", 400: "Not understood", 403: "Refused", 405: "Not supported"}.get(code, "Error")
    return _message(request, title, text, code)


def _show_error(request: Request, error: Exception) -> Response:
    if isinstance(error, Unavailable):
        return _message(request, "The store does not respond", str(error), 503)
    return _message(request, "This does not work", str(error), 400 if isinstance(error, InvalidInput) else 500)


def _message(request: Request, title: str, text: str, code: int) -> Response:
    site: Site = request.app.state.site
    slug = request.path_params.get("slug", "")
    values: dict[str, Any] = {"title": title, "text": text}
    if slug in site.destinations:
        values["base"] = f"/d/{slug}"
    return render(request, "message.html", "message", values, code=code)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Args:
        host: a name or an address of this machine.
        port: the port; 0 for any free one.

    Raises:
        InvalidInput: the port is taken, or the address is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(found[0], found[1])
    except OSError as error:
        raise InvalidInput(f"--host {host} is not an address of this machine: {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidInput(f"--host {host} is not an address of this machine") from error
        reason = "taken" if error.errno == errno.EADDRINUSE else f"not available ({error.strerror})"
        raise InvalidInput(f"port {port} is {reason}: give another --port, or 0 for any free one") from error
    return listening


def serve(app: Starlette, listening: socket.socket, ready: Callable[[], object] | None = None) -> None:
    """Serve the gallery until the process is stopped by a signal.

    Args:
        app: the gallery.
        listening: a socket from `listen`. Connections wait in it until the server runs.
        ready: called in a thread of its own at the start.
    """
    if ready:
        threading.Thread(target=ready, daemon=True).start()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    site: Site = app.state.site
    with closing(listening), closing(site):
        uvicorn.Server(config).run(sockets=[listening])
