"""What a resumed run may change: every setting is in the table, and the table is what is done."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxgpt.config import ClassifyConfig, TrainConfig, flat, load_recipe, save_config, with_settings
from jaxgpt.errors import ConfigError, MissingError
from jaxgpt.training.resume import MAY_CHANGE, Change, Found, accepted, changes, find_run
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints

HERE = Path("runs/here")
BEFORE = with_settings(load_recipe("nano"), {"steps": 12, "batch": 8, "accumulate": 2, "init_from": "gpt2"})
OTHER: dict[str, Any] = {  # another value of every setting
    "steps": 24,
    "seed": 1,
    "batch": 16,
    "accumulate": 4,
    "log_every": 3,
    "eval_every": 7,
    "eval_batches": 1,
    "skip_steps": "9,11-12",
    "on_divergence": "skip",
    "divergence_limit": 3,
    "spike_deviations": 6.0,
    "patience": 3,
    "best_metric": "none",
    "evaluation.tasks": ("lambada",),
    "evaluation.data": "a.txt",
    "evaluation.every": 3,
    "evaluation.data_dir": "tasks",
    "evaluation.limit": 5,
    "evaluation.stride": 4,
    "evaluation.protocol": "book",
    "sample_tokens": 9,
    "sample_prompt": "Other",
    "checkpoint_every": 5,
    "keep_checkpoints": 9,
    "out_dir": "runs/moved",
    "init_from": "gpt2-large",
    "blocks": "scan",
    "backward_keeps": "nothing",
    "loss_chunk": 4,
    "distributed": True,
    "tensorboard": True,
    "data.path": "elsewhere",
    "data.tokenizer": "gpt2",
    "data.val_fraction": 0.2,
    "data.stride": 3,
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "model.vocab": 258,
    "model.context": 64,
    "model.layers": 3,
    "model.heads": 2,
    "model.width": 64,
    "model.mlp_width": 100,
    "model.classes": 2,
    "model.bias": False,
    "model.qkv_bias": False,
    "model.init": "torch",
    "model.layer_norm_epsilon": 1e-6,
    "model.activation": "relu",
    "model.tied_head": False,
    "model.scale_attention": False,
    "model.qk_norm": True,
    "model.scale_by_inverse_layer": True,
    "model.position": "alibi",
    "model.dropout": 0.5,
    "model.compute_dtype": "bfloat16",
    "model.vocab_multiple": 7,
    "optim.learning_rate": 0.5,
    "optim.schedule": "constant",
    "optim.warmup_steps": 1,
    "optim.initial_fraction": 0.5,
    "optim.decay_fraction": 0.5,
    "optim.final_fraction": 0.5,
    "optim.beta1": 0.5,
    "optim.beta2": 0.5,
    "optim.optimizer": "muon",
    "optim.momentum": 0.5,
    "optim.moment_dtype": "bfloat16",
    "optim.epsilon": 1e-3,
    "optim.weight_decay": 0.5,
    "optim.decay_all": True,
    "optim.clip_norm": 0.5,
    "optim.clip_after": 3,
    "optim.ema_decay": 0.5,
}


def rule_of(name: str) -> Change:
    [rule] = [rule for rule, names in MAY_CHANGE.items() for each in names if name in each.split(" x ")]
    return rule


def found(recipe: TrainConfig = BEFORE, step: int = 4) -> Found:
    return Found(step, recipe, "abc", frozenset())


def test_every_setting_is_in_the_table_exactly_once() -> None:
    listed = [name for names in MAY_CHANGE.values() for entry in names for name in entry.split(" x ")]
    assert sorted(listed) == sorted(flat(TrainConfig()) | flat(ClassifyConfig()))
    assert all(OTHER[name] != value for name, value in flat(BEFORE).items())
    assert set(OTHER) == set(flat(TrainConfig()))


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_changes_when_its_rule_allows(name: str) -> None:
    now, rule = with_settings(BEFORE, {name: OTHER[name]}), rule_of(name)
    if rule is Change.FREELY:
        assert accepted(found(), now, (), HERE) == now
        return
    with pytest.raises(ConfigError) as refused:
        accepted(found(), now, (), HERE)
    text = str(refused.value)
    assert str(HERE) in text and "then" in text and refused.value.exit_code == 2
    if rule is Change.BY_NAME:
        flag = "--" + name.replace("_", "-")
        assert f"{name}: {flat(BEFORE)[name]} then, {OTHER[name]} now" in text
        assert f"{flag} {OTHER[name]}" in text
        for named in ({name}, {name.partition(".")[0]}):
            assert accepted(found(), now, named, HERE) == now
    else:
        with pytest.raises(ConfigError, match="name another --out-dir"):
            accepted(found(), now, {name}, HERE)


def test_all_that_is_refused_is_told_at_once() -> None:
    changed = {
        "seed": 9,
        "model.layers": 5,
        "optim.beta1": 0.3,
        "optim.beta2": 0.4,
        "log_every": 1,
        "steps": 3,
    }
    with pytest.raises(ConfigError) as refused:
        accepted(found(), with_settings(BEFORE, changed), {"optim.beta2"}, HERE)
    text = str(refused.value)
    for part in (
        "seed: 0 then, 9 now",
        "model.layers: 4 then, 5 now",
        "optim.beta1: 0.9 then, 0.3 now",
        "it has done 4, but 3 are asked for",
        "--optim.beta1 0.3",
        "name another --out-dir",
    ):
        assert part in text
    assert "beta2" not in text and "log_every" not in text


@pytest.mark.parametrize(
    "changed",
    [
        {"batch": 16, "accumulate": 1},
        {"batch": 1, "accumulate": 16},
        {"data.stride": 128},
        {"model.mlp_width": 512},
        {"model.vocab_multiple": 384},
    ],
)
def test_the_same_thing_said_in_another_way_is_no_difference(changed: dict[str, Any]) -> None:
    now = with_settings(BEFORE, changed)
    assert now != BEFORE and accepted(found(), now, (), HERE) == now


def test_the_weights_a_run_began_with_are_kept_when_they_are_not_named_again() -> None:
    again = dataclasses.replace(BEFORE, init_from=None)
    assert accepted(found(), again, (), HERE) == BEFORE
    assert accepted(found(), BEFORE, {"init_from"}, HERE) == BEFORE
    fresh = dataclasses.replace(BEFORE, init_from=None)
    with pytest.raises(ConfigError, match="from: None then, gpt2 now"):
        accepted(found(fresh), BEFORE, {"init_from"}, HERE)


def test_changes_are_named_with_old_and_new() -> None:
    now = with_settings(BEFORE, {"batch": 16, "accumulate": 1, "optim.beta1": 0.3})
    assert changes(BEFORE, now) == {"batch": [8, 16], "accumulate": [2, 1], "optim.beta1": [0.9, 0.3]}
    assert changes(BEFORE, BEFORE) == {}


def saved(folder: Path, meta: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    save_config(BEFORE, folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        checkpoints.save(4, {"params": {"a": np.zeros(2, np.float32)}}, meta)


def test_a_run_is_found_with_its_settings_its_data_and_what_it_measured(tmp_path: Path) -> None:
    rows = [{"step": 2, "loss": 3.0}, {"step": 4, "loss": 2.0}, {"step": 4, "val_loss": 2.5}]
    # As version 0.1.0 saved it: only the fingerprint is still used.
    position = {"fingerprint": "abc", "seed": 0, "sequences": 16, "context": 128, "stride": 128}
    saved(tmp_path, {"position": position}, rows)
    assert find_run(tmp_path) == Found(4, BEFORE, "abc", frozenset({"step", "loss", "val_loss"}))


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    assert find_run(tmp_path) is None


def test_checkpoints_that_were_taken_away_are_missed(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n')
    with pytest.raises(MissingError, match=r"checkpoints\): .* goes to step 3; put the folder back"):
        find_run(tmp_path)


def test_converted_weights_are_no_run(tmp_path: Path) -> None:
    saved(tmp_path, {}, [])
    with pytest.raises(ConfigError, match=r"they were converted, not trained here; .*: --from"):
        find_run(tmp_path)
