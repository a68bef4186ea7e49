"""The command line, `jaxgpt VERB ...`: tyro fills the verb's dataclass, and the verb runs. Imports no JAX."""

import dataclasses
import importlib
import importlib.metadata
import io
import logging
import platform
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from jaxgpt.config import (
    ClassifyConfig,
    RunConfig,
    TrainConfig,
    flag_of,
    flat,
    load_recipe,
    preset_names,
    stated_in,
    task_of,
)
from jaxgpt.errors import ConfigError, explain

logger = logging.getLogger(__name__)


class Verb(NamedTuple):
    """One subcommand."""

    summary: str
    """What `jaxgpt --help` says of it."""
    module: str
    """The module in jaxgpt/verbs/ that has its `run`."""
    arguments: str | None
    """The name of the dataclass in that module, which `run` takes.

    None means a recipe, whose settings are the flags. `run` then also takes the names of the settings that
    flags give, and of those that a recipe file of the person's own states. A verb of RECIPES that has a
    dataclass as well takes both, as a pair.
    """


VERBS = {
    "info": Verb("show the versions, the backend, the devices and their memory", "info", "InfoArgs"),
    "prepare": Verb("turn texts into a folder of token files", "prepare", "PrepareArgs"),
    "tokenizer": Verb(
        "train a BPE vocabulary, or add special tokens to a model", "tokenizer", "TokenizerArgs"
    ),
    "pretrain": Verb("train a model; the same command again resumes it", "pretrain", None),
    "plan": Verb("say what training needs on chips that are not here", "plan", "PlanArgs"),
    "finetune": Verb("make a trained model solve a problem, from examples of it", "finetune", None),
    "classify": Verb("put texts into classes with a trained classifier", "classify", "ClassifyArgs"),
    "answer": Verb("have a model answer a file of questions", "answer", "AnswerArgs"),
    "judge": Verb("have another model score answers", "judge", "JudgeArgs"),
    "generate": Verb("continue a text with a trained model", "generate", "GenerateArgs"),
    "compare": Verb("show what differs between runs, and what they reached", "compare", "CompareArgs"),
    "replay": Verb("train a step of a run again, and show its losses and gradients", "replay", "ReplayArgs"),
    "evaluate": Verb("score a model on text and on tasks", "evaluate", "EvaluateArgs"),
    "chat": Verb("talk with a model in the terminal", "chat", "ChatArgs"),
    "serve": Verb("serve a model with OpenAI's API and a web page", "serve", "ServeArgs"),
    "convert": Verb("write weights in another format, and check them", "convert", "ConvertArgs"),
    "bench": Verb("measure the speed of training, generating, compiling or reading", "bench", "BenchArgs"),
}
# The verbs that take a recipe: the kind of settings where no recipe is named, and what --help says.
RECIPES: dict[str, tuple[Callable[[], RunConfig], str]] = {
    "pretrain": (
        TrainConfig,
        "Train a model from text. The same command again resumes the run where it stopped.",
    ),
    "plan": (
        TrainConfig,
        "Say whether training fits on chips that need not be here, what they exchange and how long it takes.",
    ),
    "finetune": (
        ClassifyConfig,
        "Train a model to classify, to answer or to prefer answers. The same command again resumes the run.",
    ),
}
# The verbs whose programs are kept for their next start. `bench` measures compiling; `plan` keeps figures.
COMPILING = frozenset(
    ("pretrain", "finetune", "classify", "answer", "generate", "replay", "evaluate", "chat", "serve")
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line. Without `argv`, it is that of this process.

    Returns where all went well; a notebook would show an exit with 0 as an error. Otherwise exits with the
    code of the error (see `errors`).
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    _speak(debug=debug)
    try:
        code = _run(args)
    except SystemExit as end:  # tyro's, after help and after flags that are wrong
        code = end.code
    except BrokenPipeError:  # the reader of the output is gone (`| head`, say): nobody is left to tell
        sys.stderr.close()
        sys.exit(74)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  Every fault gets one line and a code.
        if debug:
            traceback.print_exc()
        message = _with_flag(str(explain(error)), args).replace("\n", "\\n")  # as in the name of a file
        print(f"jaxgpt: error: {message}", file=sys.stderr)
        sys.exit(explain(error).exit_code)
    if code:
        sys.exit(code)


def _with_flag(message: str, args: Sequence[str]) -> str:
    """The message of an error; where it begins with a setting that a flag gave, the flag: `--top-k = -1`."""
    setting, given, rest = message.partition(" = ")
    for flag in (arg.partition("=")[0] for arg in args if arg.startswith("-")):
        name = flag.lstrip("-").replace("-", "_")
        if given and setting in (name, name.rpartition(".")[2]):
            return flag + given + rest
    return message


def _speak(*, debug: bool) -> None:
    """Set how the process says things: warnings in a line, and with `debug` what is logged.

    What stdout cannot write in its encoding is replaced: no text is lost for one character.
    """
    logging.getLogger("jaxgpt").setLevel(logging.DEBUG if debug else logging.NOTSET)
    if debug:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    else:  # Orbax and TensorStore show whole tracebacks of errors that are reported here in one line
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        sys.unraisablehook = _show_unraisable
    warnings.formatwarning = lambda message, *_: f"jaxgpt: warning: {message}\n"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _show_unraisable(what: "sys.UnraisableHookArgs") -> None:
    """Show an error that cannot be raised, unless C++ code names no object in which it came up."""
    if what.object is not None:
        sys.__unraisablehook__(what)


def _run(args: list[str]) -> int | str | None:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0 if args else 2
    if args[0] == "--version":
        print("jaxgpt", importlib.metadata.version("jaxgpt"))
        return 0
    name, rest = args[0], args[1:]
    if name not in VERBS:
        why = f"the verbs are {', '.join(VERBS)}"
        raise ConfigError(f"no verb {name!r}", why=why, fix="jaxgpt --help explains them")
    verb, arguments = VERBS[name], parse(name, rest)
    versions = importlib.metadata.version("jaxgpt"), platform.python_version()
    logger.debug("jaxgpt %s on Python %s: %s", *versions, arguments)
    named = () if verb.arguments else (_named(rest, arguments), stated_in(rest[0]))
    # JAX takes seconds to import. The processes of a job would meet at the lock, which the run takes once.
    if isinstance(arguments, RunConfig) and not arguments.distributed and "jax" not in sys.modules:
        from jaxgpt.training.lock import refuse_in_use

        refuse_in_use(Path(arguments.out_dir))
    if name in COMPILING and not getattr(arguments, "distributed", False):
        from jaxgpt.compilation_cache import keep_compiled_programs

        logger.debug("compiled programs are kept in %s", keep_compiled_programs())
    start = time.perf_counter()
    importlib.import_module(f"jaxgpt.verbs.{verb.module}").run(arguments, *named)
    logger.debug("%s took %.2f s", name, time.perf_counter() - start)
    return 0


def parse(name: str, args: Sequence[str]) -> Any:
    """Return what a command line says to the verb called `name`, without running it.

    The result is the verb's dataclass; for a recipe it is the settings. tyro itself writes a message and
    exits with 2 for flags that are wrong. Raises ConfigError for settings that are.
    """
    verb = VERBS[name]
    kind: Any = None
    if verb.arguments is not None:
        kind = getattr(importlib.import_module(f"jaxgpt.verbs.{verb.module}"), verb.arguments)
    if name in RECIPES:
        return _parse_recipe(name, args, kind)
    return tyro.cli(kind, prog=f"jaxgpt {name}", args=args)


def _parse_recipe(name: str, args: Sequence[str], own: Any) -> Any:
    """Read `CONFIG [--any.field VALUE ...]`: the settings of the recipe are the defaults of the flags.

    `own` is the dataclass of further flags, if the verb has any. The settings and that are then returned.
    """
    recipe = args[0] if args and not args[0].startswith("-") else None
    default, trains = (load_recipe(recipe) if recipe else RECIPES[name][0]()), verb_of(RECIPES[name][0]())
    if (belongs := verb_of(default)) != trains:
        other = f"write: jaxgpt {belongs} {recipe}"
        raise ConfigError(
            f"CONFIG {recipe}",
            why=f"the recipe's task is {task_of(default)}, which is none of `jaxgpt {name}`",
            fix=other if name == trains else f"name a recipe of `jaxgpt {trains}`, such as nano",
        )
    presets = ", ".join(preset for preset in preset_names() if verb_of(load_recipe(preset)) == trains)
    of_recipe = tyro.conf.arg(metavar="CONFIG", help=f"The recipe: {presets}, or a TOML file.")
    kind = dataclasses.make_dataclass(
        name.capitalize(),
        [
            ("config", Annotated[str, tyro.conf.Positional, of_recipe]),
            *([("own", Annotated[own, tyro.conf.arg(name="")])] if own else []),
            ("settings", Annotated[type(default), tyro.conf.arg(name="")], default),
        ],
        namespace={"__doc__": RECIPES[name][1]},
        frozen=True,
    )
    parsed: Any
    parsed, unknown = tyro.cli(kind, prog=f"jaxgpt {name}", args=args, return_unknown_args=True)
    if unknown:
        _refuse_text(name, parsed.config, unknown)
        tyro.cli(kind, prog=f"jaxgpt {name}", args=args)  # says what is wrong with them, and exits
    if parsed.config != recipe:  # the defaults of the flags would be taken for the settings of the recipe
        raise ConfigError(
            f"CONFIG {parsed.config!r}",
            why="it comes after a flag, so that its settings would not be read",
            fix=f"write it first: jaxgpt {name} {parsed.config} --...",
        )
    return (parsed.settings, parsed.own) if own else parsed.settings


def _refuse_text(name: str, recipe: str, unknown: Sequence[str]) -> None:
    """Raise ConfigError where a text stands behind the recipe, as if it were a setting without a flag."""
    if not any(arg.startswith("-") for arg in unknown):
        raise ConfigError(
            shlex.join(unknown),
            why="nothing but the recipe stands without a flag",
            fix="to train on a text, write: "
            + shlex.join(["jaxgpt", name, recipe, "--data.path", unknown[0]]),
        )


def verb_of(recipe: RunConfig) -> str:
    """The verb that trains such a recipe."""
    return "pretrain" if isinstance(recipe, TrainConfig) else "finetune"


def _named(args: Sequence[str], settings: RunConfig) -> frozenset[str]:
    """The settings that flags name, by their dotted names; a resumed run may change some of them only so."""
    flags = {arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")}
    flags |= {
        flag.replace("--no-", "--").replace(".no-", ".") for flag in flags
    }  # how a setting is turned off
    return frozenset(name for name in flat(settings) if flag_of(name) in flags)


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: jaxgpt VERB ... [--debug]\n       jaxgpt --version\n\n"
        "From text to a trained GPT and back to text, in JAX.\n\n"
        f"{verbs}\n\n`jaxgpt VERB --help` explains a verb. To begin: jaxgpt pretrain nano"
    )
