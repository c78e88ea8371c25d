"""The page at `/`: text as it is written, each token with its alternatives; hand-written HTML, CSS and JavaScript.

Its files are in `page/`. They are read once, and a path is answered only if it is one of theirs, so no request reaches
the disk. They hold no secrets and need no key; the page asks for the key and sends it with its requests to `/v1`.

The Content-Security-Policy lets the page run and load its own files only, so even a text that became HTML by mistake
could start nothing. No other site may put the page into a frame.
"""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a newer tinygpt has other files at the same paths
}


def page_routes() -> list[Route]:
    """`/`, and `/page/NAME` for each of its files."""
    files = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    routes = [_route(f"/page/{name}", path) for name, path in files.items() if name != "index.html"]
    return [_route("/", files["index.html"]), *routes]


def _route(address: str, path: Path) -> Route:
    content, kind = path.read_bytes(), TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return Route(address, answer)
