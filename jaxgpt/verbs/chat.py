"""`jaxgpt chat`: talk with a model in the terminal."""

import contextlib
import dataclasses
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxgpt.errors import DataError
from jaxgpt.verbs.flags import EngineFlags
from jaxgpt.verbs.generate import SamplingFlags

if TYPE_CHECKING:
    from jaxgpt.inference.conversation import Conversation
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request

HELP = """/reset  forget the conversation
/help   this list
/quit   leave; so does Ctrl-D
Ctrl-C  stop the answer; what was written of it stays in the conversation"""
STEPS = 4  # tokens between two looks at the keyboard


@dataclass(frozen=True, kw_only=True)
class ChatArgs(SamplingFlags, EngineFlags):
    """Talk with MODEL, a line at a time. Answers go to stdout, everything else to stderr.

    An instruction-tuned model is asked in its template. A base model continues one growing text instead: what you type
    is appended as it stands (begin with a space where a new word begins), and an empty line lets it go on.

    Old exchanges are dropped when the context window is full; the system text stays. Commands: /reset, /help, /quit.
    Ctrl-C stops an answer, Ctrl-D leaves. Lines may also be piped in.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl."""
    template: Literal["auto", "instruction", "plain"] = "auto"
    """instruction: the template of Alpaca and the book. plain: one growing text. auto: plain, unless the model's folder
    has a chat.json that says {"chat": "instruction"}."""
    system: str = ""
    """Opens the template, in place of its first sentence; in a plain conversation, the text's beginning."""


def run(args: ChatArgs) -> None:
    """Read lines and answer them until the end of input or /quit."""
    from jaxgpt.display import note
    from jaxgpt.inference.conversation import Conversation, room_for_prompt, template_of
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request

    sampling = args.sampling()
    template = template_of(args.model) if args.template == "auto" else args.template
    lm = args.load(args.model)
    tokenizer = lm.tokenizer
    engine = Engine(
        lm.text_config,
        lm.params,
        end=tokenizer.end_of_text,
        slots=1,
        steps=STEPS,
        int8=args.int8,
        consume=True,
    )
    request = Request(prompt=(), max_new_tokens=args.max_new_tokens, sampling=sampling, seed=args.seed)
    room = room_for_prompt(lm.config.context, args.max_new_tokens)
    talk = Conversation(tokenizer, template, room, args.system)
    note(f"{args.model}: {template}, a context of {lm.config.context} tokens; /help lists the commands")
    for line in _lines():
        command = line.strip()
        if command == "/quit":
            return
        if command == "/reset":
            talk.reset()
            note("the conversation is forgotten")
        elif re.fullmatch(r"/\w+", command):
            note(HELP if command == "/help" else f"no command {command}; there are\n{HELP}")
        elif command or template == "plain":
            _reply(engine, talk, request, line, args.stop)


def _reply(
    engine: "Engine", talk: "Conversation", request: "Request", line: str, stop: tuple[str, ...]
) -> None:
    """Write the answer to a line as it comes, and remember it; each answer draws with a seed of its own."""
    from jaxgpt.display import note, write_text
    from jaxgpt.inference.conversation import answer_pieces

    with _interruptible() as stopped:
        ids, left_out = talk.ask(line)
        for what in left_out:
            note(what)
        request = dataclasses.replace(
            request, prompt=tuple(ids), seed=(request.seed + talk.turns - 1) % 2**32
        )
        _label("model", "green")
        said = []
        for piece in answer_pieces(engine, request, talk.tokenizer, talk.stop + stop, stopped):
            said.append(piece)
            write_text(piece)
        talk.answer("".join(said))
        write_text("\n")
        if stopped():
            note("(stopped)")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within, a first Ctrl-C only makes the yielded function true; a second one interrupts as usual.

    The engine is never interrupted inside a step, which would leave it without its cache.
    """
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What is typed or piped in, a line at a time. At the prompt, a first Ctrl-C gives a hint, a second one leaves."""
    from jaxgpt.display import note

    typed, hinted = sys.stdin.isatty(), False
    if typed:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  (lines can then be edited, and called back)
    while True:
        try:
            line = _read_line(typed=typed)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DataError("input is not UTF-8", why=str(error), fix="convert it to UTF-8") from error
        except KeyboardInterrupt:
            if not typed:
                raise
            if hinted:
                return
            note("\nCtrl-C again or Ctrl-D leaves")
            hinted = True
        else:
            hinted = False
            yield line


def _read_line(*, typed: bool) -> str:
    """One line without its end. Raises EOFError behind the last one."""
    if typed and sys.stdout.isatty():
        _label("you", "cyan")
        return input("> ")
    if typed:
        print("> ", end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.removesuffix("\n")


def _label(who: str, color: str) -> None:
    """Say in the terminal who speaks."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        from rich.console import Console

        Console(stderr=True).print(who, style=f"bold {color}", highlight=False)
