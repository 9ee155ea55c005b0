"""The proxy variables of the environment. Servers on loopback are never reached through a proxy."""

import os

__all__ = ["drop_socks_proxies", "exempt_loopback", "is_loopback"]

_LOOPBACK = ("127.0.0.1", "localhost")
_PROXY_VARIABLES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


def exempt_loopback() -> dict[str, str]:
    """Return values of `NO_PROXY` and `no_proxy` that add loopback to the hosts that are exempt already.

    Both variables are returned, because some programs read only one of them.
    """
    exempt = [host.strip() for host in os.environ.get("no_proxy", os.environ.get("NO_PROXY", "")).split(",")]
    # Python exempts every host only if the value is a single asterisk.
    hosts = ["*"] if "*" in exempt else dict.fromkeys([*filter(None, exempt), *_LOOPBACK])
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


def drop_socks_proxies() -> None:
    """Remove the variables that name a SOCKS proxy from the environment of this process.

    Prefect's client fails if a variable names such a proxy, even if it uses none. Call this only if Prefect's server is
    on loopback.
    """
    for name in (*_PROXY_VARIABLES, *map(str.lower, _PROXY_VARIABLES)):
        if os.environ.get(name, "").lower().startswith("socks"):
            del os.environ[name]


def is_loopback(host: str) -> bool:
    """Return whether this host is exempt from proxies by `exempt_loopback`."""
    return host in _LOOPBACK
