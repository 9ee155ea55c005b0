"""The gallery's server, over a real store: what it lets in, what its pages say, and which pictures it serves."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import pytest
from PIL import Image

from dreamcore.errors import InvalidInput
from flows.destination import manifest
from flows.destination.favourites import Mark, Marks, read_marks
from flows.destination.manifest import Row
from flows.gallery.marks import READ_SECONDS
from flows.gallery.marks import Marks as PageMarks
from flows.gallery.security import Access, is_loopback
from flows.gallery.server import create_app, listen
from flows.gallery.site import find_destinations, slug_of
from flows.local.stack import Stack
from flows.s3 import layout
from flows.s3.layout import thumb_uri
from flows.s3.storage import RetryPolicy, Storage
from tests.support.command import DREAMGRID, Command
from tests.support.faults import Fault, Proxy
from tests.support.gallery_pages import fill, served

SOURCE, DESTINATION = "s3://photos/gallery server/", "s3://dreams/gallery server/"
HOSTILE = ('"><img src=x onerror=alert(1)>.jpg', "javascript:alert(1).jpg", "\u202egpj.exe \u0645.jpg")
BROKEN = "broken.jpg"


class Answer(NamedTuple):
    """A response."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Browser:
    """Sends requests to a gallery, with any headers."""

    def __init__(self, url: str, destination: str) -> None:
        self.host, self.base = urlsplit(url).netloc, f"/d/{slug_of(destination)}"

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection(self.host, timeout=60)) as connection:
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def page(self, path: str) -> str:
        """Return a page of the destination, which must exist."""
        answer = self.ask(self.base + path)
        assert answer.code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def rows(stack: Stack) -> list[Row]:
    """The rows of a destination with usual names, hostile names, and a photograph that failed."""
    storage = Storage(environment=stack.environment())
    storage.create_bucket("s3://photos")
    storage.create_bucket("s3://dreams")
    return fill(storage, SOURCE, DESTINATION, ("coffee.jpg", *HOSTILE), (BROKEN,))


@pytest.fixture(scope="module")
def marks(stack: Stack) -> Marks:
    return Marks(DESTINATION, Storage(environment=stack.environment()))


@pytest.fixture(scope="module")
def browser(stack: Stack, rows: list[Row]) -> Iterator[Browser]:
    """A gallery over the destination."""
    app = create_app([DESTINATION], Storage(environment=stack.environment()))
    with served(app) as url:
        yield Browser(url, DESTINATION)


@pytest.fixture
def done(rows: list[Row]) -> Row:
    """The first dream."""
    return rows[0]


def csrf(browser: Browser) -> str:
    (token,) = re.findall(r'name="csrf" content="([^"]+)"', browser.page("/library"))
    return str(token)


# --- what is let in


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_other_host_names_are_refused(browser: Browser, host: str) -> None:
    answer = browser.ask(f"{browser.base}/library", Host=host)
    assert answer.code == 421
    assert b"coffee" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:1234", "[::1]:80"])
def test_names_of_this_machine_are_let_in_with_any_port(browser: Browser, host: str) -> None:
    assert browser.ask(f"{browser.base}/library", Host=host).code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_only_addresses_of_this_machine_need_no_token(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert (Access.to(host).token is None) is loopback


@pytest.mark.parametrize("path", ["/", "/library", "/static/script/main.js", "/nowhere"])
def test_every_response_has_the_policy(browser: Browser, path: str) -> None:
    headers = browser.ask(
        path if path in ("/", "/nowhere") or path.startswith("/static") else browser.base + path
    ).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_pages_have_no_inline_scripts_and_name_no_other_host(browser: Browser, done: Row) -> None:
    for path in (
        "/library",
        f"/grid?photo={quote(done.source_uri)}",
        f"/loupe?id={done.result_id}",
        "/failures",
        "/runs",
    ):
        page = browser.page(path)
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=\"", page)
        assert not [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not re.match(r"[/?#]|$", link)]


def test_names_of_photographs_are_text(browser: Browser) -> None:
    page = browser.page("/library")
    assert "<img src=x" not in page
    assert "&gt;&lt;img src=x onerror=alert(1)&gt;.jpg" in page
    assert 'href="javascript:' not in page
    assert "<bdi>\u202egpj.exe \u0645.jpg</bdi>" in page
    for attribute in re.findall(r'(?:aria-label|title|data-name)="([^"]*)"', page):
        assert "\u202e" not in attribute


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 204),
        ({"Origin": "http://{host}"}, 204),
        ({"X-Dreamgrid-Token": "wrong"}, 403),
        ({"X-Dreamgrid-Token": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_mark_needs_the_token_of_the_page(
    browser: Browser, done: Row, marks: Marks, headers: dict[str, str], code: int
) -> None:
    given = {"X-Dreamgrid-Token": csrf(browser)} | {k: v.format(host=browser.host) for k, v in headers.items()}
    body = urlencode({"id": done.result_id, "mark": 4})
    marks.add([Mark(str(done.result_id), 0)])
    assert browser.ask(f"{browser.base}/mark", "POST", body, **given).code == code
    assert marks.read().get(str(done.result_id)) == (4 if code == 204 else None)


@pytest.mark.parametrize(
    "fields", [{"mark": "6"}, {"mark": "-2"}, {"mark": "x"}, {"mark": ""}, {"id": ""}, {"id": "0" * 16}, {"id": "'"}]
)
def test_a_wrong_mark_is_refused(browser: Browser, done: Row, fields: dict[str, str]) -> None:
    body = urlencode({"id": done.result_id, "mark": "1"} | fields)
    assert browser.ask(f"{browser.base}/mark", "POST", body, X_Dreamgrid_Token=csrf(browser)).code in (400, 404)


def test_a_long_form_is_refused(browser: Browser) -> None:
    assert browser.ask(f"{browser.base}/mark", "POST", "x" * 2**21, X_Dreamgrid_Token=csrf(browser)).code == 413


def test_a_gallery_of_another_address_requires_the_token(stack: Stack, rows: list[Row]) -> None:
    access = replace(Access.to("0.0.0.0"), read_only=True)
    app = create_app([DESTINATION], Storage(environment=stack.environment()), access)
    with served(app) as url:
        browser = Browser(url, DESTINATION)
        path = f"{browser.base}/library"
        assert browser.ask(path).code == 401
        assert browser.ask(f"{path}?token=wrong").code == 401
        assert browser.ask(path, Host="evil.example").code == 421
        answer = browser.ask(f"{path}?q=a&token={access.token}")
        assert (answer.code, answer.headers["Location"]) == (303, f"{path}?q=a")
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert browser.ask(path, Cookie=cookie.partition(";")[0]).code == 200
        assert browser.ask(path, Cookie=cookie.partition(";")[0], Host="10.1.2.3:80").code == 200
        assert browser.ask(f"//evil.example/?token={access.token}").headers["Location"].startswith("/evil")
        body = urlencode({"id": rows[0].result_id, "mark": 1})
        refused = browser.ask(
            f"{browser.base}/mark", "POST", body, Cookie=cookie.partition(";")[0], X_Dreamgrid_Token=access.csrf
        )
        assert (refused.code, "--read-only" in refused.text) == (403, True)


def test_marks_of_others_are_read_again_after_a_moment(storage: Storage, destination: str) -> None:
    a, b, now = "a" * 16, "b" * 16, [0.0]
    other, here = Marks(destination, storage), PageMarks(destination, storage, lambda: now[0])
    assert here.read() == {}
    begun = here.version()
    other.add([Mark(a, 3)])
    assert here.read() == {}
    now[0] += READ_SECONDS + 0.1
    assert here.read() == {a: 3}
    here.add([Mark(b, 1)])
    assert here.read() == {a: 3, b: 1}, "a mark of this process counts at once"
    news = here.news(begun)
    assert (dict(news.marks), news.is_all) == ({a: 3, b: 1}, False)
    here.add([Mark(a, 0)])
    assert here.news(news.version)[1:] == ({a: 0}, False)
    assert here.news(here.version())[1:] == ({}, False)
    for unknown in ("", "x-1", begun.partition("-")[0] + "-99999999999"):
        assert here.news(unknown)[1:] == ({b: 1}, True)


def test_an_acknowledged_mark_is_in_the_store(browser: Browser, storage: Storage, rows: list[Row]) -> None:
    chosen = {str(row.result_id): mark for row, mark in zip(rows[:4], (1, 3, -1, 2), strict=True)}
    version = re.findall(r'data-marks-version="([^"]+)"', browser.page("/library"))[0]
    body = urlencode([pair for each in chosen.items() for pair in zip(("id", "mark"), each, strict=True)])
    assert browser.ask(f"{browser.base}/mark", "POST", body, X_Dreamgrid_Token=csrf(browser)).code == 204
    assert chosen.items() <= read_marks(DESTINATION, storage).items()
    news = json.loads(browser.page(f"/marks?since={version}"))
    assert chosen.items() <= news["marks"].items()
    assert browser.ask(f"{browser.base}/marks?since={news['version']}").code == 204


def test_a_mark_that_the_store_refuses_is_not_acknowledged(stack: Stack, rows: list[Row], proxy: Proxy) -> None:
    storage = Storage(RetryPolicy(0.2, 1), proxy.environment(stack.environment()))
    with served(create_app([DESTINATION], storage)) as url:
        browser = Browser(url, DESTINATION)
        token = csrf(browser)
        proxy.choose = lambda call: Fault.RESET if "/favourites/" in call.uri else None
        body = urlencode({"id": rows[5].result_id, "mark": 5})
        answer = browser.ask(f"{browser.base}/mark", "POST", body, X_Dreamgrid_Token=token)
        assert answer.code == 503
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert f'data-id="{rows[5].result_id}" data-mark="5"' not in browser.page(
            f"/grid?photo={quote(SOURCE)}coffee.jpg"
        )


# --- pages


def test_the_library_lists_photographs_and_counts(browser: Browser) -> None:
    page = browser.page("/library")
    assert "4 photographs" in page
    assert "from 32 dreams, 8 failed" in " ".join(page.split())
    assert "Gains of different layers cannot be compared" in page


@pytest.mark.parametrize(
    ("query", "count"),
    [("q=coffee", 1), ("layers=blocks.2", 4), ("status=failed", 1), ("seen=nothing", 0), ("since=2027-01-01", 0),
     ("since=nonsense", 4), ("status=nonsense", 4), ("marks=5", 0), ("run=nothing", 0)],
)  # fmt: skip
def test_filters_are_in_the_address(browser: Browser, query: str, count: int) -> None:
    page = browser.page(f"/library?{query}")
    assert len(re.findall(r'class="tile', page)) == count
    assert ("No photograph matches" in page) is (count == 0)


def test_a_wrong_cursor_is_a_message(browser: Browser) -> None:
    answer = browser.ask(f"{browser.base}/library?after=nonsense")
    assert answer.code == 400
    assert "<h1>" in answer.text


def test_the_grid_has_a_cell_for_each_value_of_both_axes(browser: Browser, done: Row) -> None:
    page = browser.page(f"/grid?photo={quote(done.source_uri)}&down=octaves&across=layers&at.seed=1")
    assert re.findall(r'<th scope="row">octaves (\d)', page) == ["2", "4"]
    assert len(re.findall(r'class="cell"', page)) == 4
    assert re.findall(r'name="at\.(\w+)" value="(\w+)"', page) == [("seed", "1")]


def test_looks_stand_in_one_row_with_their_names(stack: Stack, storage: Storage, destination: str) -> None:
    looks: list[dict[str, Any]] = [{"look": "creatures"}, {"look": "neon"}, {}]
    looks += [{"look": "neon", "seed": 1}, {"layers": "blocks.2", "steps": 4}]
    shown = fill(storage, SOURCE, destination, ("coffee.jpg",), grid=looks)[0]
    with served(create_app([destination], Storage(environment=stack.environment()))) as url:
        browser = Browser(url, destination)
        page = browser.page(f"/grid?photo={quote(shown.source_uri)}")
        assert len(re.findall(r'class="cell"', page)) == len(looks)
        assert "no run has these settings" not in page
        names = re.findall(r'class="cap second"><span>([^<]*)', page.replace("<wbr>", ""))
        assert names == ["creatures", "neon", "default", "neon, seed 1", "blocks.2, steps 4"]
        table = browser.page(f"/grid?photo={quote(shown.source_uri)}&down=layers&across=steps")
        assert "no run has these settings" in table
        (seeded,) = re.findall(r'data-id="(\w+)"[^>]*aria-label="coffee.jpg, neon, seed 1,', page)
        loupe = browser.page(f"/loupe?id={seeded}&mode=split").replace("<wbr>", "")
        assert '<p class="sub" id="what"><bdi>neon, seed 1</bdi>' in loupe
        assert "<h2>neon, seed 1</h2>" in loupe
        assert '<span class="tag right">neon, seed 1</span>' in loupe
        assert 'id="alone"' not in browser.page("/scores")
        one_each = browser.page("/scores?with.seed=0")
        assert "each objective has one setting only" in one_each
        assert 'data-chart="map"' not in one_each
        filters = browser.page("/library")
        assert "sorted by this rank, not by the number below the picture. Gains of" in filters
        assert re.search(r'name="layers" value="blocks.4\+blocks.5=0.5"><span><bdi>creatures</bdi>', filters)
        assert re.search(r'name="layers" value="blocks.2"><span><bdi>blocks.2</bdi>', filters)
        assert "<bdi>layers: creatures</bdi>" in browser.page("/library?layers=blocks.4%2Bblocks.5%3D0.5")


def test_a_photograph_that_failed_says_why(browser: Browser) -> None:
    page = browser.page(f"/grid?photo={quote(SOURCE + BROKEN)}")
    assert page.count('class="hole failed') == 4
    assert "damaged" in page
    assert "JPEG: image file is truncated" in browser.page("/failures")


def test_the_loupe_compares_settings(browser: Browser, rows: list[Row]) -> None:
    page = browser.page(f"/loupe?id={rows[0].result_id}&id={rows[1].result_id}")
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]+)', page)
    assert differing[0] == "seed"
    assert "layers" not in differing
    assert "octaves" not in differing
    assert page.count('class="pane') == 2
    assert f"dreamgrid redream &#39;{rows[0].result_uri}&#39; again.png" in page


@pytest.mark.parametrize(
    "path", ["/loupe?id=0000000000000000", "/loupe", "/grid?photo=s3://photos/none", "/dream/x", "/nowhere"]
)
def test_what_does_not_exist_is_a_message(browser: Browser, path: str) -> None:
    answer = browser.ask(browser.base + path)
    assert answer.code == 404
    assert "Traceback" not in answer.text


def test_pages_go_on_while_the_store_is_away(
    stack: Stack, rows: list[Row], proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.gallery.site.REFRESH_SECONDS", 0)
    storage = Storage(RetryPolicy(0.2, 1), proxy.environment(stack.environment()))
    with served(create_app([DESTINATION], storage)) as url:
        browser = Browser(url, DESTINATION)
        assert "out of date" not in browser.page("/library")
        proxy.choose = lambda _: Fault.RESET
        page = browser.page("/library")
        assert "The page may be out of date" in page
        assert "4 photographs" in page
        picture = browser.ask(f"{browser.base}/full/{rows[0].result_id}")
        assert (picture.code, "the store does not respond" in picture.text) == (503, True)
        proxy.choose = lambda _: None
        assert "out of date" not in browser.page("/library")


# --- pictures


def test_a_thumbnail_is_made_once_and_kept(browser: Browser, storage: Storage, done: Row) -> None:
    uri = thumb_uri(DESTINATION, str(done.result_uri))
    assert uri.startswith(f"{DESTINATION}thumbs/coffee.jpg/")
    answer = browser.ask(f"{browser.base}/thumb/{done.result_id}.webp")
    assert answer.headers["Content-Type"] == "image/webp"
    assert "immutable" in answer.headers["Cache-Control"]
    assert min(Image.open(io.BytesIO(answer.body)).size) == 160, "a small dream is not enlarged"
    assert storage.read(uri) == answer.body
    storage.write(uri, b"another", "image/webp")
    assert browser.ask(f"{browser.base}/thumb/{done.result_id}.webp").body == answer.body, "kept on disk"
    storage.write(uri, answer.body, "image/webp")


def test_a_whole_dream_is_sent_as_it_is_stored(browser: Browser, storage: Storage, done: Row) -> None:
    answer = browser.ask(f"{browser.base}/full/{done.result_id}")
    assert answer.body == storage.read(str(done.result_uri))
    assert answer.headers["Content-Type"] == "image/png"
    saved = browser.ask(f"{browser.base}/full/{done.result_id}?download=1").headers["Content-Disposition"]
    assert saved.startswith("attachment; filename*=UTF-8''coffee.jpg-")


def test_a_photograph_has_the_size_of_its_dream(browser: Browser, done: Row) -> None:
    answer = browser.ask(f"{browser.base}/photograph/{done.result_id}")
    assert Image.open(io.BytesIO(answer.body)).size == (240, 160)
    assert browser.ask(f"{browser.base}/photograph/{done.result_id}/small").code == 200


def test_a_missing_dream_is_a_drawing_with_its_key(browser: Browser, storage: Storage, rows: list[Row]) -> None:
    row = next(row for row in rows if row.source_uri.endswith(HOSTILE[0]) and row.status == "done")
    storage.delete(str(row.result_uri))
    for path in (f"/full/{row.result_id}", f"/thumb/{row.result_id}.webp"):
        answer = browser.ask(browser.base + path)
        assert (answer.code, answer.headers["Content-Type"]) == (404, "image/svg+xml")
        assert "missing" in answer.text
        assert "<img" not in answer.text
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_photograph_that_is_not_an_image_is_a_drawing(browser: Browser, storage: Storage, rows: list[Row]) -> None:
    row = rows[-1]
    storage.write(row.source_uri, b"<html>", "image/jpeg")
    answer = browser.ask(f"{browser.base}/photograph/{row.result_id}")
    assert answer.code in (404, 422)


def test_a_manifest_cannot_name_objects_of_others(stack: Stack, storage: Storage, rows: list[Row]) -> None:
    folder = "s3://dreams/gallery foreign/"
    secret = "s3://photos/secret.png"
    storage.write(secret, b"secret", "image/png")
    row = replace(rows[0], result_uri=secret, result_id="00112233445566aa")
    storage.write(layout.part_uri(folder, row.run_id, 0), manifest.to_parquet([row]), manifest.CONTENT_TYPE)
    with served(create_app([folder], Storage(environment=stack.environment()))) as url:
        browser = Browser(url, folder)
        for path in ("thumb/{}.webp", "full/{}"):
            answer = browser.ask(f"{browser.base}/{path.format(rows[0].result_id)}")
            assert b"secret" not in answer.body
            assert answer.code in (403, 404)


def test_a_read_only_gallery_writes_no_thumbnails(stack: Stack, storage: Storage, rows: list[Row]) -> None:
    app = create_app([DESTINATION], Storage(environment=stack.environment()), Access(read_only=True))
    with served(app) as url:
        browser = Browser(url, DESTINATION)
        answer = browser.ask(f"{browser.base}/thumb/{rows[3].result_id}.webp")
        assert answer.code == 200
        assert storage.find(thumb_uri(DESTINATION, str(rows[3].result_uri))) is None


# --- several destinations, and the command


def test_destinations_are_found_in_a_folder_of_several(storage: Storage, destination: str) -> None:
    for name in ("a/", "deep/b/", "c/"):
        storage.write(f"{destination}{name}manifest/run=r/shard-000000.parquet", b"", "x")
    storage.write(f"{destination}other/file", b"", "x")
    assert find_destinations(destination, storage) == [destination + name for name in ("a/", "c/", "deep/b/")]
    assert find_destinations(destination + "a", storage) == [destination + "a/"]
    with pytest.raises(InvalidInput, match="has no dreams"):
        find_destinations(destination + "other/", storage)
    with pytest.raises(InvalidInput, match="not an S3 address"):
        find_destinations("dreams", storage)


def test_a_gallery_of_several_lists_them(stack: Stack, rows: list[Row]) -> None:
    with served(create_app([DESTINATION, "s3://dreams/other/"], Storage(environment=stack.environment()))) as url:
        browser = Browser(url, DESTINATION)
        page = browser.ask("/").text
        assert f'href="/d/{slug_of(DESTINATION)}/library"' in page
        assert f'href="/d/{slug_of("s3://dreams/other/")}/library"' in page
        assert browser.ask("/d/00000000/library").code == 404


def test_a_taken_port_is_a_clear_error(dreamgrid_inprocess: Command, rows: list[Row]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = dreamgrid_inprocess("gallery", DESTINATION, "--port", port)
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    with pytest.raises(InvalidInput, match="not an address of this machine"):
        listen("192.0.2.77", 0)


def test_a_destination_without_dreams_is_a_clear_error(dreamgrid_inprocess: Command, destination: str) -> None:
    done = dreamgrid_inprocess("gallery", destination)
    assert done.returncode == 2
    assert "has no dreams" in " ".join(done.stderr.split())


def test_the_command_prints_the_address_and_ends_with_a_signal(rows: list[Row]) -> None:
    command = [str(DREAMGRID), "gallery", DESTINATION, "--port", "0", "--no-open", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.communicate()
            text += line
        browser = Browser(json.loads(text)["url"], DESTINATION)
        assert "4 photographs" in browser.page("/library")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in error
