"""What every request must pass before the application sees it: the Host and Origin headers, and the key.

A page of any web site can make a visitor's browser send requests to 127.0.0.1. Such a request carries the page's
Origin, which is not ours, and is refused. With DNS rebinding the page's own name leads to this machine, so that the
origins are the same; then the Host header has a name that isn't ours, and is refused. A numerical address can't be
rebound, so any is allowed.

Trusted sites, `origins`, are let in: the answers tell browsers that the site's pages may read them (CORS), and so does
the answer to what a browser asks before it sends a request ("preflight"), which carries no key.

Nothing in a request is logged: neither its key nor its contents.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from .errors import ApiError
from .metrics import Requests


class Guard:
    """ASGI middleware. hosts: names in the Host header that are ours, besides localhost; key: None for none; public:
    the paths that need none; origins: of other sites whose pages may use this server."""

    def __init__(
        self, app: Any, hosts: Collection[str], key: str | None, requests: Requests, public: Collection[str],
        origins: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.app, self.key, self.requests, self.public = app, key, requests, public
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.origins = {origin.lower().rstrip("/") for origin in origins}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        headers = Headers(scope=scope)
        shared = self._shared_with(headers)

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.requests.count(scope["path"], message["status"])
                message = message | {"headers": [*message.get("headers", ()), *shared]}
            await send(message)

        asks_before = bool(shared) and scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        answer: Any = Response(status_code=204, headers=permission(headers)) if asks_before else self.app
        try:
            self._check(scope["path"], headers, None if asks_before else self.key)
        except ApiError as error:
            answer = JSONResponse(error.body(), error.status, error.headers)
        await answer(scope, receive, counted)

    def _shared_with(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The headers that let a page of another site read an answer, if that site is trusted."""
        origin = headers.get("origin", "")
        if origin.lower() not in self.origins:
            return []
        exposed = b"Retry-After, WWW-Authenticate"
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"),
                (b"access-control-expose-headers", exposed)]  # fmt: skip

    def _check(self, path: str, headers: Headers, wanted_key: str | None) -> None:
        host = headers.get("host", "")
        name = host_name(host)
        if not (name in self.hosts or is_address(name)):
            raise ApiError(
                "The Host header names another server: give --allow-host if it is a name of this", status=421
            )
        origin = headers.get("origin")
        if origin is not None and not (same_origin(origin, host) or origin.lower() in self.origins):
            raise ApiError("Requests from other web sites are not allowed: see --allow-origin", status=403)
        if wanted_key is not None and path not in self.public:
            self._check_key(headers.get("authorization", ""), wanted_key)

    def _check_key(self, given: str, wanted: str) -> None:
        scheme, _, key = given.partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), wanted.encode()):
            return
        words = "Incorrect API key provided" if given else "You didn't provide an API key: Authorization: Bearer KEY"
        raise ApiError(words, code="invalid_api_key", status=401, headers={"WWW-Authenticate": "Bearer"})


def permission(headers: Headers) -> dict[str, str]:
    """What a page of a trusted site may send: any header that it asks for, since OpenAI's client has ten."""
    found = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600"}
    if asked := headers.get("access-control-request-headers"):
        found["Access-Control-Allow-Headers"] = asked
    if headers.get("access-control-request-private-network") == "true":
        found["Access-Control-Allow-Private-Network"] = "true"
    return found


def host_name(host: str) -> str:
    """The name in a Host header, without the port; "" if it has none."""
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
