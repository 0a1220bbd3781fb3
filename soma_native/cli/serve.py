"""`soma-native serve`: puts saved models behind an address, with a page to play with them."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from typing import Any

from soma_native.cli.arguments import add_command, add_device, add_kv_cache, integer, number
from soma_native.cli.errors import CommandError, UsageError
from soma_native.cli.output import print_json
from soma_native.generation.sampling import WEIGHTS

KEY = "SOMA_API_KEY"
_NOTES = f"""\
The address has a page at / and OpenAI's API under /v1. Sampling defaults are those of the folder. The environment
variable {KEY} gives the key without showing it in the list of processes. It needs the packages starlette, uvicorn
and jinja2: pip install 'soma-native[serve]'."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "serve", run, "put saved models behind an address", "serve runs/showcase --port 8080", _NOTES
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="the folder of a model, which is called as its folder"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: %(default)s, this machine)"
    )
    parser.add_argument(
        "--port", type=integer(0, 65535), default=8080, help="0 takes a free port (default: %(default)s)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="refuse requests without it")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let pages of this origin ask, such as https://example.org; may be repeated, '*' is all",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float32",
        help="form of the weights, as for generate; auto needs no memory for a copy (default: %(default)s)",
    )
    add_kv_cache(parser)
    add_device(parser)
    count: dict[str, Any] = {"type": integer(1, 1 << 16), "metavar": "N"}
    parser.add_argument(
        "--max-sequences", **count, default=16, help="texts of a model that grow at once (default: %(default)s)"
    )
    parser.add_argument("--max-queue", **count, default=128, help="texts that may wait for that (default: %(default)s)")
    parser.add_argument("--max-tokens", **count, default=4096, help="most tokens of a text (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=number(above=0),
        default=600.0,
        metavar="SECONDS",
        help="longest time of an answer (default: %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    try:
        from soma_native.serve.app import App
        from soma_native.serve.guard import is_loopback
        from soma_native.serve.limits import Limits
        from soma_native.serve.models import Served, name_of
        from soma_native.serve.server import Server, listen
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        if package not in ("starlette", "uvicorn", "jinja2", "anyio", "h11"):
            raise
        raise CommandError(f"serve needs the package {package}: pip install 'soma-native[serve]'") from None
    names = [name_of(folder) for folder in arguments.folders]
    if len({*names}) < len(names):
        raise UsageError(f"models are called as their folders, and two have one name: {', '.join(sorted(names))}")
    api_key = arguments.api_key if arguments.api_key is not None else os.environ.get(KEY) or None
    limits = Limits(max_queue=arguments.max_queue, max_tokens=arguments.max_tokens, answer_seconds=arguments.timeout)
    try:
        listening = listen(arguments.host, arguments.port)
    except OSError as error:
        raise CommandError(_no_address(arguments, error)) from None
    with listening:
        host, port = listening.getsockname()[:2]
        local = is_loopback(host)
        served = [
            Served.load(
                folder,
                arguments.device,
                weights=arguments.weights,
                kv_cache=arguments.kv_cache,
                max_sequences=arguments.max_sequences,
                limits=limits,
            )
            for folder in arguments.folders
        ]
        app = App(served, api_key=api_key, allow_origins=arguments.allow_origin, local=local)
        try:
            server = Server(app, limits, lambda: print(_ENDS, file=sys.stderr))
            _say(
                arguments, [one.card() for one in served], _url(arguments.host, host, port), local, api_key is not None
            )
            server.run_on(listening)
        finally:
            app.close()
    return 128 + server.ended_by if server.ended_by else 0


_ENDS = "soma-native: no more requests are taken; those that run are finished, unless Ctrl-C comes again"


def _url(given: str, host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host if given == host else given}:{port}"


def _say(arguments: argparse.Namespace, cards: list[dict[str, Any]], url: str, local: bool, key: bool) -> None:
    if not local and not key:
        print(f"soma-native: everyone who reaches {url} can use it: --api-key or {KEY} asks for a key", file=sys.stderr)
    if arguments.json:
        print_json({"url": url, "api_key": key, "models": cards})
    else:
        for card in cards:
            chats = ", chats" if card["chat"] else ""
            print(f"{card['id']}: {card['parameters']:,} parameters, context of {card['max_model_len']} tokens{chats}")
        print(f"{url} has a page for your browser; programs use {url}/v1; Ctrl-C ends it")
    sys.stdout.flush()


def _no_address(arguments: argparse.Namespace, error: OSError) -> str:
    where = f"{arguments.host}:{arguments.port}"
    if isinstance(error, socket.gaierror):
        return f"{arguments.host} is no known host: give --host an address of this machine, such as 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by another program: give another --port, or 0 for a free one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} is not allowed: ports below 1024 need rights; give another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{arguments.host} is no address of this machine: give another --host"
    return f"cannot listen at {where}: {error.strerror or error}"
