"""The endpoints, as an ASGI application of starlette."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .answers import Answer
from .bodies import Asked, Served, read_chat, read_completion, unknown_model
from .engine import Engine
from .errors import ApiError
from .fields import parse
from .guard import Guard
from .metrics import Requests, exposition
from .post import Listener, Post
from .tickets import BusyError, ClosedError, Ticket
from .web import page_routes

MOST_BYTES = 1 << 20  # of a body
MOST_SECONDS = 30.0  # until it has arrived
_GONE = 499  # only for the metrics: nobody reads it


def application(
    served: Served, engine: Engine, key: str | None = None, hosts: Collection[str] = (), most_bytes: int = MOST_BYTES,
    origins: Collection[str] = (),
) -> Starlette:  # fmt: skip
    """See the module's docstring. key: what clients must send; hosts: further names of this server; origins: other
    sites whose pages may use it."""
    requests, page = Requests(), page_routes()
    endpoints = Endpoints(served, engine, requests, most_bytes)
    public = {"/health", *(route.path for route in page)}
    return Starlette(
        routes=[
            *page,
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts, key=key, requests=requests, public=public, origins=origins)],
        exception_handlers={ApiError: _answer_error, HTTPException: _answer_http_error, 500: _answer_failure},
    )


class Endpoints:
    """What each path answers."""

    def __init__(self, served: Served, engine: Engine, requests: Requests, most_bytes: int) -> None:
        self.served, self.engine, self.requests, self.most_bytes = served, engine, requests, most_bytes
        self.post = Post()
        engine.after_turn = self.post.send

    async def health(self, request: Request) -> Response:
        """200 while requests are taken."""
        alive = self.engine.alive
        return JSONResponse({"status": "ok" if alive else "shutting down"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        return PlainTextResponse(exposition(self.engine, self.requests), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"] != self.served.name:
            raise unknown_model(request.path_params["name"])
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        """OpenAI's fields, and vLLM's max_model_len: the tokens of a prompt and its answer together."""
        own = {"id": self.served.name, "object": "model", "created": self.served.created, "owned_by": "tinygpt"}
        return own | {"max_model_len": self.served.model.config.block_size}

    async def completions(self, request: Request) -> Any:
        return await self._answer(request, read_completion)

    async def chat(self, request: Request) -> Any:
        return await self._answer(request, read_chat)

    async def _answer(self, request: Request, read: Callable[[Served, dict[str, Any]], Asked]) -> Any:
        try:
            return await self._answered(request, read)
        except Exception as error:
            raise failure(error) from None

    async def _answered(self, request: Request, read: Callable[[Served, dict[str, Any]], Asked]) -> Any:
        asked = read(self.served, parse(await whole_body(request, self.most_bytes)))
        answer, listener = Answer(self.served, asked), Listener(self.post)
        try:
            ticket = self.engine.submit(asked.wanted, listener)
        except BusyError as error:
            wait = {"Retry-After": str(error.seconds)}
            raise ApiError(str(error), code="rate_limit_exceeded", status=429, headers=wait) from None
        except ClosedError as error:
            raise ApiError(str(error), status=503) from None
        if asked.stream:
            return EventStream(events(answer, listener), ticket)
        try:
            done = await unless_gone(collected(answer, listener), request.receive)
        finally:
            ticket.cancel()
        return Response(status_code=_GONE) if done is None else JSONResponse(done)


async def collected(answer: Answer, listener: Listener) -> dict[str, Any]:
    """The whole answer."""
    while answer.unfinished:
        answer.add(*await listener.next())
    return answer.whole()


async def events(answer: Answer, listener: Listener) -> AsyncIterator[bytes]:
    """The answer as server-sent events."""
    for chunk in answer.first():
        yield _event(chunk)
    try:
        while answer.unfinished:
            for chunk in answer.add(*await listener.next()):
                yield _event(chunk)
    except Exception as error:  # the status is sent already
        yield _event(failure(error).body())
        return
    for chunk in answer.last():
        yield _event(chunk)
    yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


# From and to the client ---------------------------------------------------------------------------


async def whole_body(request: Request, most: int) -> bytes:
    """The body. Raises ApiError if it is too large, or too slow."""
    too_large = ApiError(f"the body has more than {most} bytes", status=413)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_large
    found = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for piece in request.stream():
                found += piece
                if len(found) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(f"the body did not arrive within {MOST_SECONDS:g} s", status=408) from None
    except ClientDisconnect:
        raise ApiError("the client is gone", status=_GONE) from None
    return bytes(found)


async def unless_gone(work: Any, receive: Any) -> Any:
    """The result of `work`; None if the client goes away before."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """A response that sends events as they come. However it ends, the places of its texts are freed."""

    headers = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
               (b"x-accel-buffering", b"no"))  # fmt: skip

    def __init__(self, content: AsyncIterator[bytes], ticket: Ticket) -> None:
        self.content, self.ticket = content, ticket

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await unless_gone(self._send(send), receive)
        finally:
            self.ticket.cancel()

    async def _send(self, send: Any) -> bool:
        await send({"type": "http.response.start", "status": 200, "headers": list(self.headers)})
        async for event in self.content:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


# Errors -------------------------------------------------------------------------------------------


def failure(error: Exception) -> ApiError:
    """What the client is told about an error.

    For an unexpected one, type and place are logged, but not its message, which may quote the request.
    """
    if isinstance(error, ApiError):
        return error
    place = "".join(traceback.format_tb(error.__traceback__))
    logging.getLogger(__name__).error("a request failed: %s\n%s", type(error).__name__, place)
    return ApiError("the server failed at this request", status=500)


async def _answer_error(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer_http_error(request: Request, error: Any) -> Response:
    """A path that isn't there, or another method."""
    words = {404: "there is no such path", 405: "the method is not allowed here"}.get(error.status_code, error.detail)
    return JSONResponse(ApiError(words, status=error.status_code).body(), error.status_code, error.headers)


async def _answer_failure(request: Request, error: Any) -> Response:
    return JSONResponse(ApiError("the server failed at this request", status=500).body(), 500)
