"""The command line: `jaxgpt VERB ...`. Finds the verb, lets tyro fill its dataclass, runs it. Imports no JAX."""

import dataclasses
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import tyro

from jaxgpt.config import TrainConfig, load_recipe, preset_names
from jaxgpt.errors import ConfigError, JaxgptError

INTERNAL_ERROR = 70


class Verb(NamedTuple):
    """One subcommand: what its --help says in the list, and the module with its `run`."""

    summary: str
    module: str
    arguments: str | None
    """Name of the dataclass in that module; None: a recipe, whose settings are the flags."""


VERBS = {
    "info": Verb("versions, backend, devices, memory", "info", "InfoArgs"),
    "prepare": Verb("texts become a folder of token files", "prepare", "PrepareArgs"),
    "tokenizer": Verb("train a BPE vocabulary of your own", "tokenizer", "TokenizerArgs"),
    "pretrain": Verb("train a model; run again to resume", "pretrain", None),
    "generate": Verb("continue a text with a trained model", "generate", "GenerateArgs"),
    "evaluate": Verb("score a model on text and on tasks", "evaluate", "EvaluateArgs"),
    "chat": Verb("talk with a model", "chat", "ChatArgs"),
    "serve": Verb("an OpenAI-compatible server with a page", "serve", "ServeArgs"),
    "convert": Verb("weights from one format to another, proved", "convert", "ConvertArgs"),
    "bench": Verb("measure training or generating", "bench", "BenchArgs"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line (default: this process's) and exit with 0, or with the code of the error (`errors`)."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not debug:  # Orbax logs whole tracebacks of what we report in a line
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    warnings.formatwarning = lambda message, *_: f"jaxgpt: warning: {message}\n"
    try:
        sys.exit(_run(args))
    except JaxgptError as error:
        _fail(error.exit_code, str(error), debug)
    except KeyboardInterrupt:
        _fail(75, "stopped by Ctrl-C", debug)
    except BrokenPipeError:  # the reader of our output is gone, `| head` for one: nobody is left to tell
        sys.stderr.close()
        sys.exit(74)
    except OSError as error:
        _fail(74, f"input/output failed: {error}; check space and permissions", debug)
    except Exception as error:
        _fail(INTERNAL_ERROR, f"internal error: {error!r}; run with --debug and report what it prints", debug)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0 if args else 2
    name, rest = args[0], args[1:]
    if name not in VERBS:
        print(
            f"jaxgpt: error: no verb {name!r}: it is one of {', '.join(VERBS)}; see jaxgpt --help",
            file=sys.stderr,
        )
        return 2
    verb = VERBS[name]
    if verb.arguments is None:
        arguments = _parse_recipe(name, rest)
    else:
        kind = getattr(importlib.import_module(f"jaxgpt.verbs.{verb.module}"), verb.arguments)
        arguments = tyro.cli(kind, prog=f"jaxgpt {name}", args=rest)
    importlib.import_module(f"jaxgpt.verbs.{verb.module}").run(arguments)
    return 0


def _parse_recipe(name: str, args: list[str]) -> TrainConfig:
    """`CONFIG [--any.field VALUE ...]`: the recipe's settings are the defaults of the flags."""
    recipe = args[0] if args and not args[0].startswith("-") else None
    default = load_recipe(recipe) if recipe else TrainConfig()
    presets = ", ".join(preset_names())

    @dataclasses.dataclass(frozen=True)
    class Pretrain:
        """Train a model from text; the same command again resumes where it stopped."""

        config: Annotated[
            str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG", help=f"{presets}, or a TOML file")
        ]
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = default

    parsed = tyro.cli(Pretrain, prog=f"jaxgpt {name}", args=args)
    if parsed.config != recipe:  # its settings were not read: the defaults of the flags would pass for them
        raise ConfigError(
            f"CONFIG {parsed.config!r}",
            why="it stands behind a flag",
            fix=f"write it first: jaxgpt {name} {parsed.config} --...",
        )
    return parsed.settings


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: jaxgpt VERB ... [--debug]\n\nFrom text to a trained GPT and back to text, in JAX.\n\n"
        f"{verbs}\n\njaxgpt VERB --help says more. Start with: jaxgpt pretrain nano"
    )


def _fail(code: int, message: Any, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"jaxgpt: error: {message}", file=sys.stderr)
    sys.exit(code)
