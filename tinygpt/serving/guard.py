"""What every request must pass before the application sees it: the Host and Origin headers, and the key.

A page of any web site can make a visitor's browser send requests to 127.0.0.1. Such a request carries the page's
Origin, which is not ours, and is refused. With DNS rebinding the page's own name leads to this machine, so that the
origins are the same; then the Host header has a name that isn't ours, and is refused. A numerical address can't be
rebound, so any is allowed.

Nothing of a request is logged: neither its key nor what it says.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .errors import ApiError
from .metrics import Requests


class Guard:
    """ASGI middleware. hosts: names in the Host header that are ours, beside localhost; key: None for none; public: the
    paths that need none."""

    def __init__(
        self, app: Any, hosts: Collection[str], key: str | None, requests: Requests, public: Collection[str]
    ) -> None:
        self.app, self.key, self.requests, self.public = app, key, requests, public
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.requests.count(scope["path"], message["status"])
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            response = JSONResponse(error.body(), error.status, error.headers)
            await response(scope, receive, counted)
            return
        await self.app(scope, receive, counted)

    def _check(self, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        name = host_name(host)
        if not (name in self.hosts or is_address(name)):
            raise ApiError(
                "The Host header names another server: give --allow-host if it is a name of this", status=421
            )
        origin = headers.get("origin")
        if origin is not None and not same_origin(origin, host):
            raise ApiError("Requests from other web sites are not allowed", status=403)
        if self.key is not None and path not in self.public:
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, given: str) -> None:
        assert self.key is not None
        scheme, _, key = given.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self.key.encode()):
            return
        words = "Incorrect API key provided" if given else "You didn't provide an API key: Authorization: Bearer KEY"
        raise ApiError(words, code="invalid_api_key", status=401, headers={"WWW-Authenticate": "Bearer"})


def host_name(host: str) -> str:
    """The name in a Host header, without the port; "" if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    return scheme.lower() in ("http", "https") and rest.lower() == host.lower()
