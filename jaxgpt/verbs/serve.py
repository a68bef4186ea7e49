"""`jaxgpt serve`: a model behind OpenAI's API, and a page to try it."""

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxgpt.verbs.flags import EngineFlags


@dataclass(frozen=True, kw_only=True)
class ServeArgs(EngineFlags):
    """Serve MODEL at http://HOST:PORT as OpenAI's API (/v1), with a page at /, /health, and /metrics for Prometheus.

    SIGTERM and Ctrl-C let running requests end first. Nothing of what clients send is logged.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own loopback needs a key."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    api_key: str | None = None
    """Key that every request but /health must present. Other users can see command lines: see --api-key-file."""
    api_key_file: Path | None = None
    """Read the key from this file instead."""
    without_key: bool = False
    """Listen at any address without a key: whoever reaches the port may use the model."""
    name: str | None = None
    """What clients call the model; the last part of MODEL unless given."""
    slots: int = 8
    """Requests that run together."""
    steps: int = 4
    """Tokens made in a call of the device: more is faster, fewer stream more smoothly."""
    queue: int = 64
    """Requests that wait for a slot at most; more get 429."""
    max_tokens: int = 1024
    """New tokens that one choice may ask for."""
    max_choices: int = 32
    """Prompts times n that one call may ask for."""
    max_body: int = 1 << 20
    """Bytes of a request's body."""
    warm_up: bool = False
    """Compile what common requests run before the first one comes."""
    drain: int = 30
    """Seconds that running requests have to end after SIGTERM."""


def run(args: ServeArgs) -> None:
    """Serve until a signal; the address goes to stderr."""
    from jaxgpt.display import note, waiting
    from jaxgpt.errors import ConfigError, JaxgptError

    key = _key(args)
    _check(args, key)
    try:
        from jaxgpt.serving.server import create_app, run_until_signalled, uvicorn_server
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"no {package}", why="the server's packages are not installed", fix="pip install 'jaxgpt[serve]'"
        ) from error
    from jaxgpt.inference.engine import Engine
    from jaxgpt.serving.api import Limits, Reader
    from jaxgpt.serving.scheduler import Scheduler

    with _bound(args.host, args.port) as listener:
        with waiting(f"loading {args.model}"):
            lm = args.load(args.model)
            tokenizer = lm.tokenizer
            engine = Engine(
                lm.text_config, lm.params, slots=args.slots, steps=args.steps, int8=args.int8, consume=True
            )
        if args.warm_up:
            with waiting("compiling"):
                engine.warm_up()
        name, context = args.name or Path(args.model).resolve().name, lm.config.context
        del lm
        limits = Limits(body=args.max_body, choices=args.max_choices, tokens=args.max_tokens)
        scheduler = Scheduler(
            engine, end=tokenizer.end_of_text, waiting=args.queue, on_failure=lambda: stop()
        )
        app = create_app(
            scheduler, Reader(name, tokenizer, context, limits), key=key, local=_is_loopback(args.host)
        )
        server = uvicorn_server(app, drain=args.drain)

        def stop() -> None:
            server.should_exit = True

        host = f"[{args.host}]" if ":" in args.host else args.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        listener.listen(128)
        note(f"{name} at {address}/ (OpenAI base URL {address}/v1); Ctrl-C to stop")
        run_until_signalled(server, listener)
    if scheduler.failed:
        raise JaxgptError("the engine failed", why="see above", fix="start the server again")


def _key(args: ServeArgs) -> str | None:
    from jaxgpt.errors import ConfigError, MissingError

    if args.api_key_file is None:
        return args.api_key
    if args.api_key is not None:
        raise ConfigError("--api-key and --api-key-file", why="there is one key", fix="give one of them")
    if not args.api_key_file.is_file():
        raise MissingError("no key", path=args.api_key_file, why="there is no such file", fix="name a file")
    return args.api_key_file.read_text(encoding="utf-8", errors="replace").strip()


def _check(args: ServeArgs, key: str | None) -> None:
    """Raise ConfigError for settings that cannot be, or that would open the server by mistake."""
    from jaxgpt.errors import ConfigError

    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError("the key", why="it must be printable ASCII without spaces", fix="choose another")
    if key is None and not args.without_key and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host} without a key",
            why="whoever reaches the port could use the model",
            fix="give --api-key-file, or --without-key if that is meant",
        )
    if 2 * args.max_choices > args.slots + args.queue:  # with echo, each prompt is scored too
        raise ConfigError(
            f"--max-choices {args.max_choices}",
            fix="lower it or raise --queue",
            why=f"it may be half of {args.slots} slots and a queue of {args.queue} at most",
        )
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port {args.port}", why="it must be 0 to 65535", fix="change it")
    for name in ("max_tokens", "max_choices", "max_body", "drain"):
        if getattr(args, name) < 1:
            flag = f"--{name.replace('_', '-')} {getattr(args, name)}"
            raise ConfigError(flag, why="it must be 1 or more", fix="change it")
    if args.queue < 0:
        raise ConfigError(f"--queue {args.queue}", why="it must be 0 or more", fix="change it")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """A socket with the address, not listening yet: nobody is let in before the model is there."""
    from jaxgpt.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener.dup()
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}", why=str(error.strerror), fix="give another"
        ) from error
