"""`jaxgpt serve`: serves a model with OpenAI's API and a web page to try it."""

import errno
import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxgpt.verbs.flags import EngineFlags, home_of

if TYPE_CHECKING:
    from jaxgpt.inference.served import Served
    from jaxgpt.serving.service import Hosted


@dataclass(frozen=True, kw_only=True)
class ServeArgs(EngineFlags):
    """Serve MODEL at http://HOST:PORT. This needs the extra `serve`.

    OpenAI's API is at /v1, a page to try the model at /, the server's state at /health, and counters for
    Prometheus at /metrics. SIGTERM and Ctrl-C end the server after the running requests. Nothing that clients
    send is logged.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or a name on the Hugging Face hub: gpt2, or OWNER/NAME.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    host: str = "127.0.0.1"
    """Address to listen on. Every address except this machine's own (127.0.0.1, localhost) needs a key."""
    port: int = 8000
    """Port to listen on. 0 takes a free one."""
    api_key: str | None = None
    """Key that every request must present, except those for /health. None means no key.
    A browser that opens the page asks for a name, which may be anything, and a password: the key.
    Other users of this machine can see command lines: --api-key-file is safer."""
    api_key_file: Path | None = None
    """File that holds the key."""
    without_key: bool = False
    """Allow any address without a key. Everyone who can reach the port can then use the model."""
    chat_template: str = "auto"
    """How a conversation becomes a prompt: a file with a Jinja template, or instruction (the book's).
    auto means what chat.json in the model's folder says, else the model's own template.
    Without any, /v1/chat/completions says that the model has none."""
    adapter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=PATH serves MODEL with an adapter (LoRA) as a further model, which requests choose by this name.
    PATH is a run that trained one, or a folder of PEFT's. The flag may be given several times.
    Each adapter has slots and a queue of its own, and memory for the matrices that it changes."""
    name: str | None = None
    """Name of the model in the API. None means the last part of MODEL."""
    slots: int = 8
    """Number of requests that run at the same time."""
    steps: int = 4
    """Number of tokens that each request gets at a time.
    With more, generation is faster. With fewer, the text arrives more evenly."""
    queue: int = 64
    """Number of requests that may wait for a slot. Further ones are refused with status 429."""
    max_tokens: int = 1024
    """Largest number of new tokens that a request may ask for in each choice."""
    max_choices: int = 32
    """Largest number of choices (prompts x n) that a request may ask for."""
    max_body: int = 1 << 20
    """Largest size of a request's body, in bytes."""
    max_connections: int = 512
    """Largest number of connections. A new one then takes the place of the one that was idle longest."""
    cors: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Let pages of this origin, such as https://example.org, use the API from a browser.
    The flag may be given several times; * means every origin, and needs a key."""
    warm_up: bool = False
    """Compile the programs that common requests need before the first request comes."""
    drain: int = 30
    """Number of seconds that running requests have to end after SIGTERM or Ctrl-C.
    A second Ctrl-C ends them at once."""
    patience: int = 25
    """Number of seconds that a step of the engine may take before /health answers 503.
    Compiling for requests of a new kind counts; --warm-up does most of it beforehand."""


def run(args: ServeArgs) -> None:
    """Serve until a signal comes. The address is written to stderr."""
    from jaxgpt.display import note
    from jaxgpt.errors import ConfigError, JaxgptError
    from jaxgpt.interrupt import end_process

    key = _key(args)
    _check(args, key)
    try:
        from jaxgpt.serving.running import HttpServer, connections_allowed
        from jaxgpt.serving.server import create_app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"no {package}", why="the server's packages are not installed", fix="pip install 'jaxgpt[serve]'"
        ) from error
    from jaxgpt.serving.metrics import Metrics

    with _bound(args.host, args.port) as listener:
        hosted = _hosted(args, lambda: stop())
        metrics, schedulers = Metrics(), [each.scheduler for each in hosted]
        app = create_app(
            hosted, metrics, cors=args.cors, key=key, local=_is_loopback(args.host), patience=args.patience
        )
        connections = connections_allowed(args.max_connections)
        if connections < args.max_connections:
            note(f"{connections} connections at most: the limit of open files (ulimit -n) leaves no more")
        server = HttpServer(app, schedulers, metrics, drain=args.drain, connections=connections)

        def stop() -> None:
            server.should_exit = True

        _listen(args, listener)
        _tell_address(args, listener, ", ".join(each.reader.model for each in hosted), key)
        server.run(sockets=[listener])
    if any(scheduler.failed for scheduler in schedulers):
        raise JaxgptError("the engine failed", why="the traceback is above", fix="start the server again")
    if any(scheduler.alive for scheduler in schedulers):
        note("the engine did not end its last step, which is cut off")
        end_process(0)


def _hosted(args: ServeArgs, on_failure: Callable[[], None]) -> "list[Hosted]":
    """The model, and the same model with each adapter, ready to be served.

    Parameters that an adapter does not change are in memory once.
    """
    from jaxgpt.display import waiting
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.templates import CHAT_FILE, Plain, template_of
    from jaxgpt.serving.api import Reader
    from jaxgpt.serving.call import Limits
    from jaxgpt.serving.scheduler import Scheduler
    from jaxgpt.serving.service import Hosted

    limits = Limits(body=args.max_body, choices=args.max_choices, tokens=args.max_tokens)
    paths: dict[str, str | None] = {_name_of(args): None, **_adapters(args)}
    hosted: list[Hosted] = []
    first: Served | None = None
    for name, path in paths.items():
        with waiting(f"loading {path or args.model}"):
            lm = args.load(args.model, path)
            home = home_of(CHAT_FILE, args.model, path)
            template = template_of(lm.tokenizer, args.chat_template, home, lm.chat_template)
            template = None if isinstance(template, Plain) else template  # it has no turns
            served = args.served(lm)
            first = first or served
            engine = Engine(
                served if served is first else served.sharing(first),
                slots=args.slots,
                ends=lm.ends,
                steps=args.steps,
            )
            reader = Reader(name, lm.tokenizer, lm.config.context, limits, template)
            del lm, served
        if args.warm_up:
            with waiting("compiling"):
                engine.warm_up()
        hosted.append(Hosted(reader, Scheduler(engine, waiting=args.queue, on_failure=on_failure)))
    return hosted


def _name_of(args: ServeArgs) -> str:
    """The name of the model without an adapter."""
    return args.name or Path(args.model).resolve().name


def _adapters(args: ServeArgs) -> dict[str, str]:
    """The paths of the adapters by their names. Raises ConfigError where a name is missing or comes twice."""
    from jaxgpt.errors import ConfigError

    found: dict[str, str] = {}
    for given in args.adapter:
        own, is_named, path = given.partition("=")
        if not (own and is_named and path):
            why, fix = "it names no adapter", "write NAME=PATH, such as --adapter spam=runs/spam"
            raise ConfigError(f"--adapter {given}", why=why, fix=fix)
        if own in (_name_of(args), *found):
            why, fix = f"a model is called {own} already", "give each adapter a name of its own"
            raise ConfigError(f"--adapter {given}", why=why, fix=fix)
        found[own] = path
    return found


def _listen(args: ServeArgs, listener: socket.socket) -> None:
    """Let clients connect. Raises what `_not_bound` makes where another process was faster meanwhile."""
    try:
        listener.listen(128)
    except OSError as error:
        raise _not_bound(args.host, args.port, error) from error


def _tell_address(args: ServeArgs, listener: socket.socket, name: str, key: str | None) -> None:
    """Say where the model answers, and what a browser that opens the page will ask for."""
    from jaxgpt.display import note

    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listener.getsockname()[1]}"
    note(f"{name} at {address}/ (OpenAI base URL {address}/v1); Ctrl-C to stop")
    if key is not None:
        note("a browser asks for a name, which may be anything, and a password, which is the key")


def _key(args: ServeArgs) -> str | None:
    from jaxgpt.errors import ConfigError, MissingError

    if args.api_key_file is None:
        return args.api_key
    if args.api_key is not None:
        why, fix = "a server has only one key", "leave out --api-key"
        raise ConfigError("--api-key and --api-key-file", why=why, fix=fix)
    if not args.api_key_file.is_file():
        fix = "name the file that holds the key"
        raise MissingError("no key", path=args.api_key_file, why="there is no such file", fix=fix)
    return args.api_key_file.read_text(encoding="utf-8", errors="replace").strip()


def _check(args: ServeArgs, key: str | None) -> None:
    """Raise ConfigError for settings that are impossible, or that would open the server by mistake."""
    from jaxgpt.errors import ConfigError

    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        fix = "choose a key of letters, digits and punctuation"
        raise ConfigError("the key", why="it must be printable ASCII without spaces", fix=fix)
    if key is None and not args.without_key and not _is_loopback(args.host):
        raise ConfigError(
            f"--host {args.host} without a key",
            why="everyone who can reach the port could use the model",
            fix="give --api-key-file, or --without-key if you want that",
        )
    for origin in args.cors:
        if origin == "*" and key is None:
            why, fix = "any web site could use the model", "give --api-key-file, or name the origins"
            raise ConfigError("--cors '*' without a key", why=why, fix=fix)
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            why, fix = "it is not an origin", "give scheme and host, such as https://example.org"
            raise ConfigError(f"--cors {origin}", why=why, fix=fix)
    _adapters(args)
    if 2 * args.max_choices > args.slots + args.queue:  # with echo, each prompt is also scored
        most = (args.slots + args.queue) // 2
        raise ConfigError(
            f"--max-choices {args.max_choices}",
            why=f"it may be at most half of {args.slots} slots and a queue of {args.queue}",
            fix=f"lower it to {most} or raise --queue to {2 * args.max_choices - args.slots}",
        )
    if not 0 <= args.port < 65536:
        fix = "choose another port, or 0 for a free one"
        raise ConfigError(f"--port {args.port}", why="it must be from 0 to 65535", fix=fix)
    for name in (
        "slots",
        "steps",
        "max_tokens",
        "max_choices",
        "max_body",
        "max_connections",
        "drain",
        "patience",
    ):
        if getattr(args, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            fix = f"give a number above 0, or leave out {flag}"
            raise ConfigError(f"{flag} {getattr(args, name)}", why="it must be 1 or more", fix=fix)
    if args.queue < 0:
        fix = "give the number of requests that may wait, or 0 for none"
        raise ConfigError(f"--queue {args.queue}", why="it must be 0 or more", fix=fix)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that has the address but does not listen yet: the model must be loaded first."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            return listener.dup()
    except OSError as error:
        raise _not_bound(host, port, error) from error


def _not_bound(host: str, port: int, error: OSError) -> Exception:
    from jaxgpt.errors import ConfigError

    if error.errno == errno.EADDRINUSE:
        why, fix = (
            "another program uses this port",
            "stop it, or choose another port, or --port 0 for a free one",
        )
    else:
        why, fix = (
            str(error.strerror),
            "give a host that is an address of this machine, and a port that is allowed",
        )
    return ConfigError(f"--host {host} --port {port}", why=why, fix=fix)
