"""Recipes are read from TOML; a run writes its settings as JSON and reads them back. Imports no JAX.

The presets are the files in configs/. The four sizes of GPT-2 are among them: `load_recipe("gpt2").model` is
GPT-2 124M.
"""

import dataclasses
import difflib
import hashlib
import json
import shlex
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxgpt.config.checks import field_types, fits, spelled
from jaxgpt.config.finetuning import ClassifyConfig, InstructConfig, PreferenceConfig
from jaxgpt.config.pretraining import TrainConfig
from jaxgpt.config.recipe import RunConfig
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.files import file_sha256, write_atomically

CONFIG_FILE = "config.json"
FORMAT = 2
"""The format number of config.json. Format 1 had `remat`, and format 0 had no number besides."""
PACKAGE = Path(__file__).parent.parent
# The tasks that a run can have, by the names that recipes give them. Without a name it is pretraining.
TASKS: dict[str, type[RunConfig]] = {
    "pretrain": TrainConfig,
    "classify": ClassifyConfig,
    "instruct": InstructConfig,
    "dpo": PreferenceConfig,
}

T = TypeVar("T")
R = TypeVar("R", bound=RunConfig)


def recipes_folder() -> Path:
    """Return the folder configs/ of a checkout, or its copy inside an installed package."""
    packaged = PACKAGE / "configs"
    return packaged if packaged.is_dir() else PACKAGE.parent / "configs"


def preset_names() -> list[str]:
    """Return the names of all presets, in alphabetical order."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(name_or_path: str, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the recipe of a preset (`nano`, `gpt2`, ...) or of a TOML file, with some settings changed.

    `settings` maps dotted names to values: `{"steps": 200, "model.layers": 6}`. The entry `task` of the file,
    such as `task = "classify"`, decides what the recipe trains and so which settings it has.

    Raises MissingError when there is no such preset or file. Raises ConfigError when the file is not TOML,
    has an unknown key (the error names the nearest known one) or a value of a wrong type. The error lists all
    problems of the file at once.
    """
    path = Path(name_or_path)
    if name_or_path in preset_names():
        path = recipes_folder() / f"{name_or_path}.toml"
    if not path.is_file():
        hint = _nearest(name_or_path, preset_names())
        known = ", ".join(preset_names())
        raise MissingError(
            f"no recipe {name_or_path!r}", why=f"it is neither a file nor one of {known}", fix=hint
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number of 5,000 digits
        fix = "correct the file at that place"
        if path.suffix != ".toml":
            text = shlex.quote(str(path))
            fix += f", or, if it is a text to train on, write: jaxgpt pretrain nano --data.path {text}"
        raise ConfigError("recipe is not TOML", path=path, why=str(error), fix=fix) from None
    problems: list[str] = []
    kind = _kind(table, problems)
    fields = _checked(kind, _renamed(table), "", problems)
    if problems:
        fix = "correct these keys in the file"
        raise ConfigError("recipe has errors", path=path, why=", ".join(problems), fix=fix)
    return with_settings(_build(kind, fields), settings or {})


def _kind(table: dict[str, Any], problems: list[str]) -> type[RunConfig]:
    """The kind of settings that a table holds; its entry `task` is taken out."""
    task = table.pop("task", "pretrain")
    if task not in TASKS:
        problems.append(f"task = {task!r} is not one of {', '.join(TASKS)}")
    return TASKS.get(task, TrainConfig)


def _renamed(table: dict[str, Any]) -> dict[str, Any]:
    """A table with settings under the names that they have now: `remat` became `backward_keeps`."""
    if isinstance(table.get("remat"), bool) and "backward_keeps" not in table:
        table["backward_keeps"] = "nothing" if table.pop("remat") else "all"
    return table


def task_of(recipe: RunConfig) -> str:
    """Return the name of the task that a recipe describes."""
    return next(name for name, kind in TASKS.items() if kind is type(recipe))


def stated_in(name_or_path: str) -> frozenset[str]:
    """Return the dotted names of the settings that a person's own TOML file states.

    A preset states none: whoever names it has typed none of its settings.
    """
    path = Path(name_or_path)
    if name_or_path in preset_names() or not path.is_file():
        return frozenset()
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return frozenset(
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in table.items()
        for key in (value if isinstance(value, dict) else [name])
    )


def is_named(name: str, named: Collection[str]) -> bool:
    """Return whether a setting, or a whole section that it stands in, is among those that were named."""
    return any(name == given or name.startswith(f"{given}.") for given in named)


def with_settings(recipe: R, settings: Mapping[str, Any]) -> R:
    """Return the recipe with some settings changed.

    `settings` maps dotted names to values, as in `load_recipe`. Raises ConfigError, which lists all problems.
    """
    table = dataclasses.asdict(recipe)
    problems: list[str] = []
    for name, value in settings.items():
        *parents, last = name.split(".")
        place: Any = table
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            problems.append(f"unknown key {name} ({_nearest(name, flat(recipe))})")
        else:
            place[last] = value
    fields = _checked(type(recipe), table, "", problems)
    if problems:
        fix = "correct the names and values that are listed"
        raise ConfigError("settings have errors", why=", ".join(problems), fix=fix)
    return _build(type(recipe), fields)


def flat(settings: Any, place: str = "") -> dict[str, Any]:
    """Return every single setting by its dotted name, such as `optim.learning_rate`."""
    found: dict[str, Any] = {}
    for name in field_types(type(settings)):
        value = getattr(settings, name)
        found |= (
            flat(value, f"{place}{name}.") if dataclasses.is_dataclass(value) else {f"{place}{name}": value}
        )
    return found


def flag_of(name: str) -> str:
    """The command line's flag for a setting: `--optim.learning-rate` for `optim.learning_rate`."""
    return "--from" if name == "init_from" else "--" + name.replace("_", "-")


def save_config(config: RunConfig, folder: Path, files: Iterable[str] = ()) -> None:
    """Write the settings of a run to config.json in its folder, whole or not at all.

    The file has a hash of the settings, and one of each of the `files` in the folder, by their names.
    """
    hashes = {name: file_sha256(folder / name) for name in files}
    content = {"task": task_of(config), "files": hashes} | dataclasses.asdict(config)
    content = {"format": FORMAT, "sha256": _sha256(content)} | content
    write_atomically(folder / CONFIG_FILE, (json.dumps(content, indent=2) + "\n").encode())


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_config(folder: Path) -> RunConfig:
    """Return the settings that a run was made with.

    Raises MissingError when the folder has no config.json, DataError when the file does not hold exactly the
    settings of a run, or when one of the files whose hash it has is another one now.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        fix = "name a folder that `jaxgpt pretrain` has made"
        raise MissingError("not a run directory", path=folder, why=f"it has no {CONFIG_FILE}", fix=fix)
    problems: list[str] = []
    restore = "put back the file that the run wrote, or correct it by hand"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError(f"a table is expected, and it holds a {type(table).__name__}")
    except (ValueError, RecursionError) as error:
        raise DataError("settings are not JSON", path=path, why=str(error), fix=restore) from None
    written = table.pop("format", 0)
    if written not in range(FORMAT + 1):
        why = f"its format is {written!r}, and this version of jaxgpt reads formats up to {FORMAT}"
        raise DataError("settings are in another format", path=path, why=why, fix="install a newer jaxgpt")
    stated = table.pop("sha256", None)
    found = _sha256(table)
    files = table.pop("files", {})
    if not isinstance(files, dict):
        problems.append("files is not a table")
    kind = _kind(table, problems)
    fields = _checked(kind, _renamed(table), "", problems)
    if problems:
        raise DataError("settings have errors", path=path, why=", ".join(problems), fix=restore)
    if stated not in (None, found):
        raise DataError(
            "settings have changed",
            path=path,
            why="they are not those that were written, whose hash is the entry sha256",
            fix="put back the file that the run wrote; or, if you changed it on purpose, delete its sha256",
        )
    _check_files(folder, files)
    return _build(kind, fields)


def _check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise DataError where a file of a run is not the one that was written, if it is there."""
    for name, stated in hashes.items():
        path = folder / name
        if path.is_file() and file_sha256(path) != stated:
            raise DataError(
                "a file of the run has changed",
                path=path,
                why=f"its sha256 is not the one in {CONFIG_FILE}",
                fix="put back the file that the run wrote; or, if you changed it on purpose, delete the "
                f"entries files and sha256 of {CONFIG_FILE}",
            )


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else "see `jaxgpt pretrain --help`"


def _checked(kind: Any, table: Any, place: str, problems: list[str]) -> dict[str, Any]:
    """Return the entries of `table` that are fields of dataclass `kind`; report the others in `problems`."""
    known = field_types(kind)
    entries: dict[str, Any] = {}
    if not isinstance(table, dict):
        problems.append(f"[{place.rstrip('.')}] is not a table")
        return entries
    for key, value in table.items():
        if key not in known:
            problems.append(f"unknown key {place}{key} ({_nearest(key, known)})")
        elif dataclasses.is_dataclass(known[key]):
            entries[key] = _checked(known[key], value, f"{place}{key}.", problems)
        elif not fits(value, known[key]):
            problems.append(f"{place}{key} = {value!r} is not {spelled(known[key])}")
        else:
            entries[key] = (
                float(value) if known[key] is float else tuple(value) if isinstance(value, list) else value
            )
    return entries


def _build(kind: type[T], entries: dict[str, Any]) -> T:
    known = field_types(kind)
    return kind(
        **{k: _build(known[k], v) if dataclasses.is_dataclass(known[k]) else v for k, v in entries.items()}
    )
