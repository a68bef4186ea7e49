"""Whether the run in a directory may continue with the settings that are asked for now.

Everything is compared before anything is written, so a refusal leaves the directory as it was.
"""

import dataclasses
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from jaxgpt.config import RunConfig, TrainConfig, flag_of, flat, is_named, read_config, task_of
from jaxgpt.errors import ConfigError, MissingError
from jaxgpt.log import METRICS_FILE, read_rows
from jaxgpt.weights.checkpoint import CHECKPOINTS, finished_steps, latest_step, read_meta


class Change(Enum):
    """When a setting may differ from the one that a run was begun with."""

    FREELY = "whenever the run is resumed"
    BY_NAME = "only when the command line or the call names it, as the recipe may be meant for another run"
    NEVER = "never, because it would then be another run"


# Every setting stands here once. Two settings joined with " x " are compared by their product.
MAY_CHANGE: dict[Change, tuple[str, ...]] = {
    Change.FREELY: (
        "steps",
        "log_every",
        "eval_every",
        "patience",
        "eval_batches",
        "evaluation.tasks",
        "evaluation.data",
        "evaluation.every",
        "evaluation.data_dir",
        "evaluation.limit",
        "evaluation.stride",
        "evaluation.protocol",
        "sample_tokens",
        "sample_prompt",
        "divergence_limit",
        "checkpoint_every",
        "keep_checkpoints",
        "out_dir",
        "blocks",
        "backward_keeps",
        "loss_chunk",
        "distributed",
        "tensorboard",
        "data.path",  # the tokens may move: their fingerprint is compared instead
        "data.tokenizer",
        "data.val_fraction",
        "data.test_fraction",
        "data.text_column",
        "data.label_column",
        "data.balance",
        "epochs",
        "mesh.data",
        "mesh.fsdp",
        "mesh.tensor",
    ),
    Change.BY_NAME: (
        "model.dropout",
        "model.compute_dtype",
        "skip_steps",
        "on_divergence",
        "spike_deviations",
        "lora.dropout",
        "optim.learning_rate",
        "optim.schedule",
        "optim.warmup_steps",
        "optim.initial_fraction",
        "optim.decay_fraction",
        "optim.final_fraction",
        "optim.beta1",
        "optim.beta2",
        "optim.momentum",
        "optim.epsilon",
        "optim.weight_decay",
        "optim.decay_all",
        "optim.clip_norm",
    ),
    Change.NEVER: (
        "seed",
        "batch x accumulate",
        "init_from",
        "best_metric",
        "reads",
        "trains",
        "layers",
        "lora.rank",
        "lora.alpha",
        "lora.targets",
        "lora.rslora",
        "labels",
        "data.stride",
        "optim.optimizer",
        "optim.moment_dtype",
        "optim.clip_after",
        "optim.ema_decay",
        "model.vocab",
        "model.vocab_multiple",
        "model.context",
        "model.layers",
        "model.heads",
        "model.width",
        "model.mlp_width",
        "model.bias",
        "model.qkv_bias",
        "model.init",
        "model.layer_norm_epsilon",
        "model.activation",
        "model.classes",
        "model.tied_head",
        "model.scale_attention",
        "model.qk_norm",
        "model.scale_by_inverse_layer",
        "model.position",
    ),
}


@dataclass(frozen=True)
class Found:
    """A run that was found in a directory, and that has saved at least one step."""

    step: int
    """The newest step that it saved."""
    recipe: RunConfig
    fingerprint: str
    """The fingerprint of its data."""
    measured: frozenset[str]
    """The names of what its log records for that step."""


def recipe_in(folder: Path) -> RunConfig | None:
    """The settings of the run in a directory; None where there is no run, or it has saved nothing yet."""
    saved = folder / CHECKPOINTS
    return read_config(folder) if saved.is_dir() and finished_steps(saved) else None


def find_run(folder: Path, damaged: Collection[Path] = ()) -> Found | None:
    """The run to continue; None where there is no run, or it has not saved anything yet.

    The checkpoints that are known to be `damaged` do not count. Raises ConfigError where the directory holds
    converted weights, MissingError where the run's checkpoints are missing, and DamagedError where the newest
    one is damaged.
    """
    rows, saved = read_rows(folder / METRICS_FILE), folder / CHECKPOINTS
    if rows and not saved.is_dir():
        raise MissingError(
            "the run has lost its checkpoints",
            path=saved,
            why=f"the folder is not there, while {METRICS_FILE} goes to step {rows[-1]['step']}",
            fix="put the folder back, name another --out-dir, or delete the run directory to begin again",
        )
    step = latest_step(saved, damaged) if saved.is_dir() else None
    if step is None:
        return None
    before = read_meta(saved, step).get("position")
    if before is None:
        raise ConfigError(
            "weights without a training state are here",
            path=folder,
            why="they were converted, not trained here",
            fix=f"begin a new run with them: --from {shlex.quote(str(folder))} --out-dir ANOTHER",
        )
    measured = frozenset(name for row in rows if row["step"] == step for name in row)
    return Found(step, read_config(folder), before["fingerprint"], measured)


def resumed_from(folder: Path) -> str:
    """What the run in a directory will go on from, in words, where no save that has begun is finished."""
    saved = folder / CHECKPOINTS
    steps = finished_steps(saved) if saved.is_dir() else []
    return (
        f"step {steps[-1]} of {folder}, or a later one"
        if steps
        else f"its start: nothing is saved in {folder}"
    )


def accepted(found: Found, recipe: RunConfig, named: Collection[str], folder: Path) -> RunConfig:
    """The recipe with which the run continues, if every setting that differs from the run's own may change.

    `named` are the settings, or whole sections of them, that were asked for by name. Where --from is left
    out, the run keeps its own. So it does with the steps to skip, where it has gone back after a divergence
    and may have added some. Otherwise raises ConfigError. The error names every setting that may not
    change, with its old and new value, and gives the flag for every setting that may change by name.
    """
    if type(recipe) is not type(found.recipe):
        raise ConfigError(
            "another run is here",
            path=folder,
            why=f"its task is {task_of(found.recipe)}, not {task_of(recipe)}",
            fix="name another --out-dir",
        )
    if recipe.init_from is None:
        recipe = dataclasses.replace(recipe, init_from=found.recipe.init_from)
    if found.recipe.on_divergence == "rewind" and not is_named("skip_steps", named):
        recipe = dataclasses.replace(recipe, skip_steps=found.recipe.skip_steps)
    before, now = _compared(found.recipe), _compared(recipe)
    free, by_name = MAY_CHANGE[Change.FREELY], MAY_CHANGE[Change.BY_NAME]
    differing = [name for name in now if now[name] != before[name] and name not in free]
    unnamed = [name for name in differing if name in by_name and not is_named(name, named)]
    others = [name for name in differing if name not in by_name]
    problems = [f"{_shown(name)}: {before[name]} then, {now[name]} now" for name in (*others, *unnamed)]
    fixes = []
    if found.step > recipe.steps:
        problems.append(f"steps: it has done {found.step}, but {recipe.steps} are asked for")
    if recipe.skip_steps != found.recipe.skip_steps:
        both = recipe, found.recipe
        done = [n for n in range(1, found.step + 1) if len({each.skips(n) for each in both}) > 1]
        problems += [f"skip_steps: step {number} is done already" for number in done[:1]]
    if unnamed:
        flags = " ".join(f"{flag_of(name)} {shlex.quote(str(now[name]))}" for name in unnamed)
        fixes.append(f"to change {', '.join(unnamed)} on purpose, say so on the command line: {flags}")
    if len(problems) > len(unnamed):
        fixes.append("name another --out-dir, or give the settings that the run in this directory has")
    if problems:
        raise ConfigError("another run is here", path=folder, why=", ".join(problems), fix="; ".join(fixes))
    return recipe


def changes(before: RunConfig, now: RunConfig) -> dict[str, list[Any]]:
    """The settings that differ, each with its old and its new value."""
    old, new = flat(before), flat(now)
    return {name: [old[name], new[name]] for name in new if old[name] != new[name]}


def _compared(recipe: RunConfig) -> dict[str, Any]:
    """The settings by name, written so that settings which mean the same have the same value."""
    values = flat(recipe)
    values["batch x accumulate"] = values.pop("batch") * values.pop("accumulate")
    if isinstance(recipe, TrainConfig):
        values["data.stride"] = recipe.data.stride or recipe.model.context
    values["model.mlp_width"] = recipe.model.mlp_size
    values["model.vocab_multiple"] = recipe.model.padded_vocab
    return values


def _shown(name: str) -> str:
    return {"init_from": "from", "model.vocab_multiple": "rows of the embedding"}.get(name, name)
