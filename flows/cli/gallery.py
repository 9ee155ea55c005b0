"""`dreamgrid gallery`: browse, compare and mark the dreams of a destination in a browser."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from urllib.parse import parse_qsl, urlencode

import click

from dreamcore.errors import InvalidInput
from flows.cli.options import json_option
from flows.machine.terminal import print_line, progress, screen, show_json

__all__ = ["gallery"]

PORT = 8470


@click.command()
@click.argument("destination", metavar="DEST")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Listen on this address. If other machines can reach it, the gallery requires the token in the printed "
    "address.",
)
@click.option(
    "--port", default=PORT, show_default=True, type=click.IntRange(0, 65535), help="Listen on this port; 0 for any."
)
@click.option("--read-only", is_flag=True, help="Write nothing: no marks, no jobs, no thumbnails in the destination.")
@click.option(
    "--open/--no-open", "open_browser", default=None, help="Open a browser. The default is to open one on a desktop."
)
@click.option(
    "--export",
    "folder",
    is_flag=False,
    flag_value="",
    metavar="[FOLDER]",
    help="Do not serve: write the gallery as plain files into a folder, or into a folder of S3. Without FOLDER, into "
    "DEST/gallery/.",
)
@click.option("--filter", "query", metavar="QUERY", help="Export these dreams only, such as 'marks=3&layers=blocks.3'.")
@json_option
def gallery(
    destination: str,
    host: str,
    port: int,
    read_only: bool,
    open_browser: bool | None,
    folder: str | None,
    query: str | None,
    as_json: bool,
) -> None:
    """Serve a page to browse, compare and mark dreams, until Ctrl-C.

    DEST is a destination, or a bucket or folder with several of them.

    \b
    Examples:
      dreamgrid gallery s3://dreams/demo/
      dreamgrid gallery s3://dreams/
      dreamgrid gallery s3://dreams/demo/ --read-only --host 0.0.0.0
      dreamgrid gallery s3://dreams/demo/ --export site/ --filter 'marks=3'
    """
    if folder is not None:
        _export(destination, folder, query or "", as_json)
        return
    if query is not None:
        raise click.UsageError("--filter chooses the dreams of an export: give --export too")
    from flows.gallery.security import Access
    from flows.gallery.server import create_app, listen, serve
    from flows.gallery.site import find_destinations
    from flows.s3.storage import FAIL_FAST, Storage

    with screen.status(f"Looking for dreams in {destination} ..."):
        storage = Storage(FAIL_FAST)  # people wait for pages
        destinations = find_destinations(destination, storage)
    access = Access.to(host, read_only=read_only)
    listening = listen(host, port)
    url = _url(host, listening.getsockname()[1], access.token)
    app = create_app(destinations, storage, access)
    if as_json:
        show_json({"url": url, "destinations": destinations, "read_only": read_only})
    else:
        print_line(f"Gallery  {url}")
        for each in destinations[:10]:
            print_line(f"         {each}")
        if len(destinations) > 10:
            print_line(f"         and {len(destinations) - 10} more")
        screen.print("Stop it with Ctrl-C.")
    sys.stdout.flush()
    try:
        serve(app, listening, ready=_opener(url) if _wants_browser(open_browser, as_json) else None)
    except KeyboardInterrupt:
        screen.print("stopped")


def _export(destination: str, folder: str, query: str, as_json: bool) -> None:
    """Write the gallery as plain files."""
    from flows.gallery.address import Params, filters_of
    from flows.gallery.export import export
    from flows.gallery.export_target import open_target
    from flows.gallery.site import find_destinations
    from flows.s3.storage import Storage

    storage = Storage()
    one, *others = find_destinations(destination, storage)
    if others:
        raise InvalidInput(f"{destination} has {len(others) + 1} destinations: export one of them, such as {one}")
    filters = filters_of(Params(parse_qsl(query.removeprefix("?"))))
    with progress("exporting pictures") as on_progress:
        exported = export(one, storage, open_target(folder, one, storage), filters, on_progress)
    if as_json:
        show_json(asdict(exported))
        return
    print_line(f"{exported.dreams:,} dreams of {exported.photographs:,} photographs -> {exported.folder}")
    if exported.missing:
        screen.print(f"{exported.missing:,} dreams are left out: their objects do not exist or are no images.")
    screen.print("Any web server or S3 website can serve it: open index.html.")


def _url(host: str, port: int, token: str | None) -> str:
    """Return the address to open, for this machine if the server listens on all addresses."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{name}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


def _wants_browser(wanted: bool | None, as_json: bool) -> bool:
    """Return whether to open a browser: without a wish, on a desktop where somebody looks at the output."""
    if wanted is not None:
        return wanted
    desktop = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return desktop and not as_json and sys.stdout.isatty()


def _opener(url: str) -> Callable[[], object]:
    import webbrowser

    return lambda: webbrowser.open(url)
