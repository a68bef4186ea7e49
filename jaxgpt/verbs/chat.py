"""`jaxgpt chat`: lets you talk with a model in the terminal."""

import contextlib
import dataclasses
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxgpt.errors import DataError
from jaxgpt.verbs.flags import AdapterFlags, EngineFlags, SamplingFlags, home_of

if TYPE_CHECKING:
    from jaxgpt.inference.conversation import Conversation
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request
    from jaxgpt.text.tokenizer import Tokenizer

HELP = """/reset  forget the conversation
/help   show this list
/quit   leave, as Ctrl-D does
Ctrl-C  stop the answer; the part that was written stays in the conversation"""
STEPS = 4  # the number of tokens between two looks at the keyboard


@dataclass(frozen=True, kw_only=True)
class ChatArgs(SamplingFlags, EngineFlags, AdapterFlags):
    """Talk with MODEL, one line at a time. Answers go to stdout, everything else to stderr.

    A model with a chat template gets your line in it. Any other model continues one growing text: your line
    is appended to it exactly as you type it, so begin it with a space if a new word begins there. An empty
    line lets the model go on.

    When the context is full, the oldest exchanges are forgotten; the system text stays. The commands are
    /reset, /help and /quit. Ctrl-C stops an answer, and Ctrl-D leaves. Lines may also come from a pipe.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run directory, weights in any format, or a name on the Hugging Face hub: gpt2, or OWNER/NAME.
    RUN@best is a run's best checkpoint, RUN@500 that of step 500."""
    chat_template: str = "auto"
    """How your lines become a prompt: a file with a Jinja template, instruction (the book's), or plain text.
    auto means what chat.json in the model's folder says, else the model's own template, else plain."""
    system: str = ""
    """Text that opens the conversation. In the instruction template it replaces the opening sentences."""


def run(args: ChatArgs) -> None:
    """Read lines and answer them until the end of input or /quit."""
    from jaxgpt.display import note
    from jaxgpt.inference.conversation import Conversation, room_for_prompt
    from jaxgpt.inference.engine import Engine
    from jaxgpt.inference.requests import Request
    from jaxgpt.inference.templates import CHAT_FILE, Plain, template_of

    sampling = args.sampling()
    lm = args.load(args.model, args.adapter)
    home = home_of(CHAT_FILE, args.model, args.adapter)
    found = template_of(lm.tokenizer, args.chat_template, home, lm.chat_template)
    template = found or Plain(lm.tokenizer)
    engine = Engine(args.served(lm), slots=1, ends=lm.ends, steps=STEPS)
    request = Request(
        prompt=(), max_new_tokens=args.max_new_tokens, sampling=sampling, seed=args.first_seed()
    )
    room = room_for_prompt(lm.config.context, args.max_new_tokens)
    talk = Conversation(template, room, args.system)
    note(f"{args.model}: {template.name}, context of {lm.config.context} tokens; /help shows the commands")
    for line in _lines():
        command = line.strip()
        if command == "/quit":
            return
        if command == "/reset":
            talk.reset()
            note("the conversation is forgotten")
        elif re.fullmatch(r"/\w+", command):
            note(HELP if command == "/help" else f"there is no command {command}; the commands are\n{HELP}")
        elif command or isinstance(template, Plain):
            _reply(engine, lm.tokenizer, talk, request, line, args.stop_strings)


def _reply(
    engine: "Engine",
    tokenizer: "Tokenizer",
    talk: "Conversation",
    request: "Request",
    line: str,
    stop: tuple[str, ...],
) -> None:
    """Write the answer to a line as it comes, and remember it. Each answer has a random seed of its own."""
    from jaxgpt.display import note, write_text
    from jaxgpt.inference.texts import pieces_of

    with _interruptible() as stopped:
        ids, left_out = talk.ask(line)
        for what in left_out:
            note(what)
        request = dataclasses.replace(request, prompt=tuple(ids), seed=request.seed + talk.turns - 1)
        _label("model", "green")
        said = []
        with contextlib.closing(pieces_of(engine, [request], tokenizer, talk.template.stop + stop)) as pieces:
            for piece in pieces:
                if stopped():
                    break
                said.append(piece.text)
                write_text(piece.text)
        talk.answer("".join(said))
        write_text("\n")
        if stopped():
            note("(stopped)")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Inside the block, the first Ctrl-C only makes the yielded function true; a second one interrupts as
    usual.

    The engine must not be interrupted inside a step: it would be left without its cache.
    """
    pressed: list[int] = []

    def press(number: int, _: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """Yield the lines that are typed or piped in. At the prompt, only a second Ctrl-C in a row leaves."""
    from jaxgpt.display import note

    typed, hinted = sys.stdin.isatty(), False
    if typed:
        with contextlib.suppress(ImportError):  # Windows has no readline
            import readline  # noqa: F401  Lines can then be edited, and earlier ones called back.
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C no longer ends the command
    while True:
        try:
            line = _read_line(typed=typed)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise DataError("input is not UTF-8", why=str(error), fix="convert the text to UTF-8") from error
        except KeyboardInterrupt:
            if not typed:
                raise
            if hinted:
                return
            note("\nPress Ctrl-C again, or Ctrl-D, to leave.")
            hinted = True
        else:
            hinted = False
            yield line


def _read_line(*, typed: bool) -> str:
    """Return one line without its end. Raises EOFError after the last line."""
    if typed and sys.stdout.isatty():
        _label("you", "cyan")
        return input("> ")
    if typed:
        print("> ", end="", file=sys.stderr, flush=True)
    if not (line := sys.stdin.readline()):
        raise EOFError
    return line.removesuffix("\n")


def _label(who: str, color: str) -> None:
    """Show in the terminal who speaks."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        from rich.console import Console

        Console(stderr=True).print(who, style=f"bold {color}", highlight=False)
