"""Access to the gallery: which requests it answers, and what its pages may do.

The server listens on loopback, where any page of any site in the user's browser can reach it. Therefore every request
must name a host that belongs to the gallery (against DNS rebinding), and a request that writes must come from the
gallery's own page. A server that other machines can reach also requires a token. Names in S3 come from other people:
the policy in every response forbids scripts, styles and pictures of other hosts, and all inline scripts and styles.
"""

import hashlib
import ipaddress
import logging
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CSRF_HEADER", "LOOPBACK", "POLICY", "Access", "Guard", "is_loopback"]

LOOPBACK = "127.0.0.1"
CSRF_HEADER = "X-Dreamgrid-Token"
"""The header of every request that writes. Only a page of the gallery knows its value."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
_LOG = logging.getLogger(__name__)
_READS = ("GET", "HEAD")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Access:
    """Who may use a gallery.

    Args:
        host: the name or address that the server listens on.
        read_only: whether every request that writes is refused.
    """

    host: str = LOOPBACK
    read_only: bool = False
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """The value of `CSRF_HEADER`, in every page."""
    token: str | None = None
    """The secret that a browser must present once; None on loopback."""

    @classmethod
    def to(cls, host: str, *, read_only: bool = False) -> "Access":
        """Return the access of a server that listens on `host`, with a new token unless that is loopback."""
        return cls(host, read_only, token=None if is_loopback(host) else secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """The name of the cookie with the token. Galleries on other ports of this host have other names."""
        return f"dreamgrid_{hashlib.sha256(str(self.token).encode()).hexdigest()[:8]}"

    def allows_host(self, header: str) -> bool:
        """Return whether a request with this `Host` header is for the gallery, whatever the port.

        If a site rebinds its name to this machine, its name is in the header and is refused. An address instead of a
        name is therefore safe on a server with a token.
        """
        name = (urlsplit(f"//{header}").hostname or "").rstrip(".")
        if is_loopback(name):
            return True
        if self.token is None:
            return False
        return name in {self.host.lower(), *_own_names()} or _is_address(name)


def _own_names() -> Iterable[str]:
    return {socket.gethostname().lower(), socket.getfqdn().lower()}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """ASGI middleware that refuses what `Access` does not allow, and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                # a browser asks whether a script has changed; pages it asks for anew
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        try:
            await (refusal or self.app)(scope, receive, send_with_headers)
        except Exception as error:  # a defect of the gallery: the server goes on
            _LOG.error("%s failed: %s: %s", scope["path"], type(error).__name__, error)
            _LOG.debug("%s failed", scope["path"], exc_info=True)
            if not started:
                answer = PlainTextResponse("The gallery failed to make this page. Its terminal says why.\n", 500)
                await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the response to a request that is not allowed, or that presents the token; None if it is allowed."""
        host = headers.get("host", "")
        if not self.access.allows_host(host):
            return PlainTextResponse("This gallery is not served under this host name.\n", 421)
        if self.access.token and (answer := self._check_token(scope, headers)):
            return answer
        if scope["method"] in _READS:
            return None
        if scope["method"] != "POST":
            return PlainTextResponse("This method is not supported.\n", 405)
        if self.access.read_only:
            return PlainTextResponse("The gallery was started with --read-only.\n", 403)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if (origin and urlsplit(origin).netloc != host) or site not in (None, "same-origin"):
            return PlainTextResponse("The request comes from another site.\n", 403)
        if not secrets.compare_digest(headers.get(CSRF_HEADER, "").encode(), self.access.csrf.encode()):
            return PlainTextResponse("The gallery was restarted: reload the page.\n", 403)
        return None

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        """Return None if the cookie has the token; otherwise the answer, which sets it if the address has the token."""
        token, name = str(self.access.token), self.access.cookie
        if secrets.compare_digest(_cookie(headers, name).encode(), token.encode()):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token", "")
        if scope["method"] != "GET" or not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse("Open the address that `dreamgrid gallery` printed: it contains a token.\n", 401)
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        path = "/" + scope["path"].lstrip("/")  # two slashes at the beginning would name another host
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        response.set_cookie(name, token, httponly=True, samesite="lax", max_age=30 * 86400)
        return response


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
