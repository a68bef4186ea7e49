"""`jaxgpt pretrain`: train a model on a text, or on prepared tokens, in a run directory."""

import contextlib
import functools
import shlex
from collections.abc import Collection
from pathlib import Path

from jax.sharding import Mesh

from jaxgpt import hosts
from jaxgpt.config import RunConfig, TrainConfig
from jaxgpt.display import DAY, TrainingDisplay, duration, no_progress, note, program
from jaxgpt.evaluation.report import REPORT_FILE
from jaxgpt.model.attend import implementation_for
from jaxgpt.model.mask import Mask
from jaxgpt.parallel import Placement, check_batch, mesh_of
from jaxgpt.runs import task_for
from jaxgpt.training.flops import count_parameters, measured_matmul_flops, peak_flops, train_flops_per_token
from jaxgpt.training.resume import resumed_from
from jaxgpt.training.run import run as train
from jaxgpt.training.stop import stop_on_signal

EXPECTED_UTILISATION = 0.4  # of the device's peak, to estimate the time in the plan
TOO_LONG = 14 * DAY  # seconds; nobody waits so long by intention without having planned it


def run(config: TrainConfig, named: Collection[str] = (), in_file: Collection[str] = ()) -> None:
    """Train as configured, or continue the run in `out_dir` where it stopped.

    `named` are the settings that were given as flags, since a resumed run may change some settings only that
    way. `in_file` are those that a recipe file of the person's own states.
    """
    recipe = trained(config, named, in_file)
    folder = Path(recipe.out_dir)
    tell(f"{folder / REPORT_FILE}: loss curve, samples, speed")
    tell(f"next: {shlex.join([program(), 'generate', str(folder), config.sample_prompt])}")


def trained(config: RunConfig, named: Collection[str], in_file: Collection[str]) -> RunConfig:
    """Run the training that a recipe describes, shown in the terminal. Returns the recipe as it was run."""
    if config.distributed:
        hosts.initialize()
    since = functools.partial(resumed_from, Path(config.out_dir))
    with hosts.one_error_ends_all(since), contextlib.closing(TrainingDisplay()) as display:
        mesh = mesh_of(config.mesh)
        check_batch(config.batch, mesh)
        progress = display.progress if hosts.is_first() else no_progress
        recipe, task = task_for(config, tell=tell, stated={*named, *in_file}, progress=progress)
        display.steps = recipe.steps
        if hosts.is_first():
            note(plan(recipe, mesh, task.tokens_per_step))
        with stop_on_signal(tell) as stop:
            train(recipe, task, stop=stop, tell=tell, sinks=[display], named=named)
    return recipe


def tell(text: str) -> None:
    """Show a line at the terminal. Of several processes, only the first one does."""
    if hosts.is_first():
        note(text)


def plan(config: RunConfig, mesh: Mesh, tokens_per_step: int) -> str:
    """One line about the training to come: devices, mesh, types, parameters, tokens, steps and time.

    A second line says so where the time is absurd, and what to run instead.
    """
    device, model = mesh.devices.flat[0], config.model
    peak = peak_flops(device.device_kind, model.compute_dtype)
    if peak is None:
        peak = measured_matmul_flops(model, mesh.local_devices[0], seconds=0.2)
    tokens = config.steps * tokens_per_step
    seconds = tokens * train_flops_per_token(model) / (peak * mesh.size * EXPECTED_UTILISATION)
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    attention = implementation_for(
        Placement(mesh),
        Mask(),
        dtype=model.compute_dtype,
        heads=model.heads,
        head_size=model.head_size,
        length=model.context,
        only_xla=model.dropout > 0 or model.position == "alibi",
    )
    instead = (
        "\nthat is too long for this machine: stop it with Ctrl-C, and take a smaller recipe, such as nano "
        "or small; or shorten the training with --steps; or use more or faster devices"
    )
    return (
        f"plan: {mesh.size} x {device.device_kind} ({axes}), {model.compute_dtype}, "
        f"attention by {attention}; "
        f"{count_parameters(model):,} parameters, vocabulary {model.vocab:,}, context {model.context:,}; "
        f"{config.steps:,} steps of {config.batch} x {config.accumulate} sequences = {tokens:,} tokens; "
        f"roughly {duration(seconds)} at {EXPECTED_UTILISATION:.0%} of the device's peak"
    ) + (instead if seconds > TOO_LONG else "")
