"""`tinygpt serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path

from ..console import say
from ..errors import UsageError
from .loading import add_model_options, load
from .needs import require_for_model, template_need

ABOUT = """Serve a model over HTTP, with OpenAI's interface: /v1/models, /v1/completions, /v1/chat/completions, and
/health and /metrics (Prometheus); / is a page for a browser. Requests are answered together: each joins at the next
token. SIGTERM or Ctrl-C finishes what runs; a second Ctrl-C doesn't. Neither prompts nor keys are logged. Needs the
extra `serve`."""
HOST, PORT, PLACES, WAITING, PREFIX_MIB = "127.0.0.1", 8000, 16, 64, 256


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    group = parser.add_argument_group("the server")
    words = f"address to listen at (default: {HOST}, this machine alone; 0.0.0.0: every machine that reaches this one)"
    group.add_argument("--host", default=HOST, help=words)
    words = f"default: {PORT}; 0: a free one, which is printed"
    group.add_argument("--port", type=int, default=PORT, metavar="N", help=words)
    words = "environment variable with the key that clients must send (default: no key is needed)"
    group.add_argument("--api-key-env", metavar="NAME", help=words)
    words = "a name of this server in clients' URLs, beside localhost and addresses (may be given several times)"
    group.add_argument("--allow-host", action="append", default=[], metavar="NAME", help=words)
    words = "a web site whose pages may use this server, as http://localhost:3000 (may be given several times)"
    group.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help=words)
    group.add_argument("--name", metavar="NAME", help="the model's name for clients (default: that of its folder)")
    words = "of the dialogue, as for `chat` (default: the model's own, else plain)"
    group.add_argument("--template", metavar="NAME_OR_FILE", help=words)
    words = f"how many texts are written at once (default: {PLACES}); each takes memory for a whole block"
    group.add_argument("--places", type=int, default=PLACES, metavar="N", help=words)
    words = f"how many more may wait; then clients are told to try again later, status 429 (default: {WAITING})"
    group.add_argument("--waiting", type=int, default=WAITING, metavar="N", help=words)
    words = f"memory for beginnings of prompts that others share, in MiB (default: {PREFIX_MIB}; 0: none)"
    group.add_argument("--prefix-cache", type=int, default=PREFIX_MIB, metavar="MIB", help=words)
    parser.set_defaults(run=serve)


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    from ..data.jinja_template import template_for
    from ..serving.server import address_of, listening, require_libraries, run

    require_for_model(options, require_libraries, template_need(options, options.template))
    key = _key(options)
    for name in ("places", "waiting"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.prefix_cache < 0:
        raise UsageError(f"--prefix-cache must be at least 0, not {options.prefix_cache}")
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port must be 0 to 65535, not {options.port}")
    for origin in options.allow_origin:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+/?", origin, re.IGNORECASE):
            raise UsageError(f"--allow-origin must be a site, as http://localhost:3000, not {origin}")
    listener = listening(options.host, options.port)  # before the model, which may take long to load
    try:
        from ..serving.app import application
        from ..serving.bodies import Served
        from ..serving.engine import Engine

        model, tokenizer, folder = load(options)
        template = template_for(folder, tokenizer, options.template)
        engine = Engine(model.eval(), options.places, options.waiting, prefix_bytes=options.prefix_cache << 20)
        name = options.name or Path(options.model).name or folder.name
        served = Served(model, tokenizer, name, template, int(time.time()), engine.most_waiting)
        hosts = [options.host, *options.allow_host]
        address = address_of(listener)
        run(application(served, engine, key, hosts, origins=options.allow_origin), engine, listener,
            lambda: say(f"Serving {name} at {address}/v1 and, as a page, at {address}/ (Ctrl-C ends)"))  # fmt: skip
    finally:
        listener.close()
    return 0


def _key(options: argparse.Namespace) -> str | None:
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env, "").strip()
    if not key:
        raise UsageError(f"--api-key-env: the environment variable {options.api_key_env} is not set, or empty")
    return key
