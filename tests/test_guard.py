"""Steps that would do harm make no update; a run skips them, goes back before them, or ends."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import runs
from jaxgpt.config import RunConfig, read_config
from jaxgpt.errors import DivergedError
from jaxgpt.training import guard
from jaxgpt.training.guard import LIMIT, NO_UPDATE, Recent, guarded
from jaxgpt.training.replay import replay
from jaxgpt.training.run import run as train
from jaxgpt.training.setup import training_step
from jaxgpt.training.starts import read_starts
from jaxgpt.training.state import TrainState, pass_by, start_state
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Task
from jaxgpt.weights.checkpoint import CHECKPOINTS, read_meta

OPTIM = jaxgpt.load_recipe("nano").optim


@functools.cache
def program() -> tuple[Any, Any]:
    """An optimizer, and a guarded step whose batch says what its loss and its gradient are."""

    def loss(params: Any, batch: Any, key: Any) -> Any:
        w = params["w"]
        return batch[0] + batch[1] * (w - jax.lax.stop_gradient(w)).sum(), jnp.ones(()), {}

    optim = dataclasses.replace(OPTIM, clip_norm=0.0, ema_decay=0.9)
    optimizer, step = training_step(optim, loss, steps=9)
    return optimizer, jax.jit(functools.partial(guarded, step=step, deviations=3.0))


def one_step(loss: float, gradient: float = 1.0, recent: Recent | None = None) -> tuple[TrainState, Any, Any]:
    """A state, the state after a guarded step of this loss and gradient, and what the step measured."""
    optimizer, step = program()
    state = start_state({"w": jnp.ones(2)}, optimizer, jax.random.key(0))
    state = dataclasses.replace(state, recent=recent)
    after, metrics = step(state, jnp.array([loss, gradient]))
    return state, after, {name: float(value) for name, value in metrics.items()}


def same(one: TrainState, other: TrainState) -> bool:
    plain = [
        jax.tree.leaves((each.step, each.trainable, each.opt_state, each.recent)) for each in (one, other)
    ]
    return all(map(np.array_equal, *plain))


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [(float("nan"), 1.0), (1.0, float("inf")), (1.0, 1e30)],
    ids=["loss", "gradient", "norm"],
)
def test_a_step_with_a_number_that_is_not_finite_makes_no_update(loss: float, gradient: float) -> None:
    """The square of a gradient of 1e30 overflows, and with it the gradient's norm."""
    state, after, metrics = one_step(loss, gradient)
    assert metrics[NO_UPDATE] == 1 and LIMIT not in metrics
    assert same(after, pass_by(state))


def test_a_moment_alone_that_is_not_finite_is_enough() -> None:
    """An infinite second moment makes the update 0: loss, gradient and weights are finite."""
    optimizer, step = program()
    state = start_state({"w": jnp.ones(2)}, optimizer, jax.random.key(0))

    def broken(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf + jnp.inf if ".nu" in jax.tree_util.keystr(path) else leaf

    state = dataclasses.replace(state, opt_state=jax.tree_util.tree_map_with_path(broken, state.opt_state))
    after, metrics = step(state, jnp.ones(2))
    assert np.isfinite([float(metrics[name]) for name in ("loss", "grad_norm")]).all()
    assert metrics[NO_UPDATE] == 1 and same(after, pass_by(state))


def test_a_step_that_does_no_harm_is_the_step() -> None:
    state, after, metrics = one_step(1.0)
    assert metrics[NO_UPDATE] == 0 and int(after.step) == 1
    assert not np.array_equal(after.trainable["w"], state.trainable["w"])


def test_a_loss_is_a_spike_far_above_the_recent_ones_alone() -> None:
    known = np.zeros(guard.WINDOW, np.float32)
    known[:64] = np.tile([1.0, 3.0], 32)  # mean 2, deviation 1: a spike is above 5
    for count, loss, left_out in ((64, 4.99, 0), (64, 5.01, 1), (63, 99.0, 0), (64, -99.0, 0)):
        recent = Recent(jnp.array(known), jnp.array(count))
        state, after, metrics = one_step(loss, recent=recent)
        assert metrics[NO_UPDATE] == left_out, (count, loss)
        assert metrics[LIMIT] == (5.0 if count == 64 else float("inf"))
        wanted = known if left_out else np.array([loss, *known[:-1]], np.float32)
        np.testing.assert_array_equal(after.recent.losses, wanted)
        assert int(after.recent.seen) == count + 1 - left_out
        assert same(after, pass_by(state)) == bool(left_out)


SETTINGS: dict[str, Any] = {
    "model.context": 16,
    "model.layers": 1,
    "model.heads": 1,
    "model.width": 8,
    "batch": 8,
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 4,
    "keep_checkpoints": 9,
    "steps": 12,
}
Harm = dict[int, float]  # by what the loss of a step, counted from 1, is multiplied


class Trainer:
    """Trains on a text of which the batches of some steps do harm."""

    def __init__(self, text: Path, harm: Harm) -> None:
        self._text, self._harm = text, harm

    def task(self, recipe: RunConfig) -> tuple[RunConfig, Task]:
        """The task of a recipe, with the harm."""
        recipe, task = runs.task_for(recipe, tell=lambda _: None)
        open_data, plain = task.open_data, task.loss
        marked: list[tuple[Any, float]] = []

        def opened(own: Path, stop: Stop) -> Any:
            data = open_data(own, stop)
            marked[:] = [(data.rows(step - 1, 0, 1).inputs_BT[0], by) for step, by in self._harm.items()]
            return data

        def loss(params: Any, batch: Any, key: Any) -> Any:
            total, weight, metrics = plain(params, batch, key)
            for row, by in marked:
                total *= jnp.where((batch.inputs_BT[0] == row).all(), by, 1.0)
            return total, weight, metrics

        return recipe, dataclasses.replace(task, open_data=opened, loss=loss)

    def __call__(self, out: Path, told: list[str] | None = None, **more: Any) -> Path:
        settings = SETTINGS | {"data.path": str(self._text), "data.tokenizer": "bytes", "out_dir": str(out)}
        recipe, task = self.task(jaxgpt.load_recipe("nano", settings | more))
        tell: Callable[[str], None] = ([] if told is None else told).append
        train(recipe, task, stop=Stop(), tell=tell, named=more)
        return out

    def again(self, out: Path, step: int) -> Any:
        return replay(out, step, lambda recipe: self.task(recipe)[1], lambda _: None)


def left(out: Path, step: int = 12) -> tuple[Any, ...]:
    """The losses of a run's log, the steps without an update, and the digests of its last state."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    log = {row["step"]: row.get("loss", "skipped") for row in rows if "loss" in row or "skipped" in row}
    return log, read_meta(out / CHECKPOINTS, step)["digests"]


def diverged(out: Path) -> dict[int, str]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["diverged"] for row in rows if "diverged" in row}


@pytest.mark.slow
def test_a_run_skips_what_diverges_and_is_the_same_when_it_is_resumed(
    tables_text: Path, tmp_path: Path
) -> None:
    trainer = Trainer(tables_text, {3: float("nan"), 7: float("inf")})
    whole = trainer(tmp_path / "whole", on_divergence="skip")
    assert [*diverged(whole)] == [3, 7]
    assert "loss is nan" in diverged(whole)[3] and "loss is inf" in diverged(whole)[7]
    table = json.loads((whole / "diverged.json").read_text())
    assert table["step"] == 7 and len(table["batches"]["7"]) == 8
    assert "| steps that diverged | 3, 7, without an update |" in (whole / "report.md").read_text()
    by_hand = trainer(tmp_path / "by-hand", on_divergence="skip", skip_steps="3,7")
    assert left(by_hand) == left(whole) and not diverged(by_hand)
    cut = trainer(tmp_path / "cut", on_divergence="skip", steps=12)
    for step in (8, 12):  # as if it had been killed after step 5
        (cut / CHECKPOINTS / str(step)).rename(tmp_path / str(step))
    assert left(trainer(cut, on_divergence="skip")) == left(whole) and diverged(cut) == diverged(whole)
    found = trainer.again(whole, 7)
    assert found.diverged == diverged(whole)[7] and found.different == [] and found.equal == [5, 6, 7]
    for _ in range(2):  # the first one counts after a resume, too
        with pytest.raises(DivergedError, match=r"diverged at step 7: .*loss is inf"):
            trainer(tmp_path / "one", on_divergence="skip", divergence_limit=1)


@pytest.mark.slow
def test_a_run_goes_back_and_passes_over_what_diverged(tables_text: Path, tmp_path: Path) -> None:
    told: list[str] = []
    trainer = Trainer(tables_text, {3: float("nan"), 10: float("nan")})
    out = trainer(tmp_path / "run", told, on_divergence="rewind")
    assert read_config(out).skip_steps == "2,3,9,10"
    both = "grad_norm is nan, loss is nan"
    assert [line for line in told if line.startswith("warning")] == [
        f"warning: diverged at step 3: {both}; going back to the start, and passing over the steps 2,3",
        f"warning: diverged at step 10: {both}; going back to step 8, and passing over the steps 2,3,9,10",
    ]
    assert read_starts(out).rewound == 2
    by_hand = trainer(tmp_path / "by-hand", on_divergence="rewind", skip_steps="2,3,9,10")
    assert left(out) == left(by_hand)
    trainer(out, on_divergence="rewind", steps=12)  # the same command again: the steps stay passed over
    assert left(out) == left(by_hand)
    found = trainer.again(out, 11)
    assert found.different == [] and found.equal == [11]
    with pytest.raises(DivergedError, match="diverged at step 10"):
        trainer(tmp_path / "once", on_divergence="rewind", divergence_limit=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["skip", *(pytest.param(policy, marks=pytest.mark.exhaustive) for policy in ("stop", "rewind"))]
)
def test_a_spike_of_the_loss_counts_as_a_divergence(
    tables_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(guard, "FEWEST", 4)
    monkeypatch.setattr(guard, "WINDOW", 6)
    trainer, out = Trainer(tables_text, {9: 3.0}), tmp_path / "run"
    settings = {"spike_deviations": 30.0, "on_divergence": policy, "optim.learning_rate": 1e-5}
    if policy == "stop":
        with pytest.raises(DivergedError, match=r"at step 9: loss is .*, a spike: the recent ones allow"):
            trainer(out, **settings)
        return
    trainer(out, **settings)
    assert [*diverged(out)] == ([9] if policy == "skip" else [])
    assert read_config(out).skip_steps == ("9" if policy == "rewind" else "")
    by_hand = trainer(tmp_path / "by-hand", **settings | {"skip_steps": "9"})
    assert left(out) == left(by_hand)
    (out / CHECKPOINTS / "12").rename(tmp_path / "12")
    trainer(out, **settings)  # the recent losses are those of the checkpoint
    assert left(out) == left(by_hand)
    found = trainer.again(out, 11)
    assert found.different == [] and found.equal[-1] == 11
