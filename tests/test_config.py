import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from jaxgpt.config import (
    DataConfig,
    EvaluationConfig,
    GPTConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
    load_recipe,
    preset_names,
    read_config,
    recipes_folder,
    save_config,
)
from jaxgpt.errors import ConfigError, DataError, MissingError


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_comment_gives_its_command(name: str) -> None:
    verb = "pretrain" if isinstance(load_recipe(name), TrainConfig) else "finetune"
    comment = [
        line for line in (recipes_folder() / f"{name}.toml").read_text().splitlines() if line.startswith("#")
    ]
    assert any(f"jaxgpt {verb} {name}" in line for line in comment)


def test_defaults_are_gpt2_small() -> None:
    config = GPTConfig()
    assert (config.vocab, config.context, config.layers, config.heads, config.width) == (
        50257,
        1024,
        12,
        12,
        768,
    )
    assert (config.mlp_size, config.head_size, config.padded_vocab) == (3072, 64, 50304)


def test_unknown_keys_and_wrong_types_are_all_listed_with_the_nearest_name(tmp_path: Path) -> None:
    path = recipe(
        tmp_path, 'steps = 1.5\n[optim]\nlerning_rate = 1\nschedule = "cosmic"\n[model]\nbias = 1\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    for part in (
        "steps = 1.5",
        "optim.lerning_rate (did you mean 'learning_rate'?)",
        "'cosmic'",
        "model.bias = 1",
    ):
        assert part in str(caught.value)


def test_an_integer_will_do_for_a_float_and_nothing_else(tmp_path: Path) -> None:
    assert load_recipe(recipe(tmp_path, "[optim]\nlearning_rate = 1")).optim.learning_rate == 1.0
    with pytest.raises(ConfigError, match="learning_rate = True is not float"):
        load_recipe(recipe(tmp_path, "[optim]\nlearning_rate = true"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 10, "heads": 3}, "multiple of heads"),
        ({"layers": 0}, "layers = 0: it must be greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"width": 12, "heads": 4, "position": "rotary"}, "even for rotary"),
    ],
)
def test_impossible_models_are_refused_with_the_value(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GPTConfig, {"position": "Rotary"}, "position = 'Rotary' is not one of 'learned'"),
        (GPTConfig, {"layers": 2.0}, "layers = 2.0 is not int"),
        (GPTConfig, {"bias": 1, "heads": True}, "heads = True is not int; bias = 1 is not bool"),
        (GPTConfig, {"activation": {}}, "activation = {} is not one of"),
        (OptimConfig, {"schedule": "step"}, "schedule = 'step' is not one of"),
        (MeshConfig, {"fsdp": "8"}, "fsdp = '8' is not int"),
        (DataConfig, {"stride": 1.5}, "stride = 1.5 is not"),
        (TrainConfig, {"model": None}, "model = None is not GPTConfig"),
        (OptimConfig, {"clip_norm": math.inf}, "clip_norm is not finite, or too large"),
        (TrainConfig, {"steps": 1 << 63}, "steps is not finite, or too large"),
    ],
)
def test_settings_of_another_type_are_refused_also_in_python(kind: Any, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kind(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": -1}, "patience = -1: it must be 0 or more"),
        ({"divergence_limit": -1}, "divergence_limit = -1: it must be 0 or more"),
        ({"spike_deviations": -1.0}, "spike_deviations = -1.0: it must be 0 or more"),
        ({"patience": 2, "eval_every": 0}, "patience = 2: with eval_every = 0 there is nothing to wait for"),
        ({"patience": 2, "best_metric": "none"}, "patience = 2: with best_metric = none there is nothing"),
        ({"best_metric": "average_val_loss"}, "the run keeps no average of the weights"),
        ({"best_metric": "val_accuracy"}, "best_metric = 'val_accuracy': it must be one of val_loss, "),
        ({"best_metric": "lambada:paper/accuracy"}, "or a figure of evaluation.tasks or evaluation.data"),
        (
            {"evaluation": EvaluationConfig(tasks=("lambada",)), "eval_every": 0},
            "neither evaluation.every nor eval_every says how often",
        ),
        (
            {
                "evaluation": EvaluationConfig(data="a.txt", every=5),
                "eval_every": 0,
                "best_metric": "val_loss",
                "patience": 1,
            },
            "patience = 1: with eval_every = 0 there is nothing to wait for",
        ),
        *(
            ({"skip_steps": wrong}, f"skip_steps = {wrong!r}")
            for wrong in ("0", "5-3", "1,,2", "x", "1-", "2, 3")
        ),
    ],
)
def test_impossible_settings_of_a_run_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig(**settings)


def test_what_is_waited_for_may_be_a_figure_that_is_measured_at_an_interval_of_its_own() -> None:
    measured = EvaluationConfig(tasks=("lambada:paper",), data="a.txt", every=5)
    for metric in ("lambada:paper/accuracy", "text:tokens/perplexity"):
        config = TrainConfig(evaluation=measured, eval_every=0, best_metric=metric, patience=1)
        assert config.best_every == 5
    assert TrainConfig(evaluation=EvaluationConfig(data="a.txt"), eval_every=7).measured_every == 7
    for wrong in ({"every": -1}, {"limit": 0}, {"stride": 0}, {"stride": 8, "protocol": "book"}):
        with pytest.raises(ConfigError, match=r"every = -1|limit = 0|stride = 0|None with the protocol book"):
            EvaluationConfig(**wrong)


def test_steps_to_skip_are_numbers_and_spans() -> None:
    config = TrainConfig(skip_steps="3,10-12,7")
    assert [step for step in range(20) if config.skips(step)] == [3, 7, 10, 11, 12]
    assert not any(map(TrainConfig().skips, range(20)))


def test_a_recipe_takes_settings_by_dotted_names() -> None:
    changed = load_recipe("nano", {"steps": 7, "model.layers": 2, "optim.learning_rate": 1})
    expected = load_recipe("nano")
    expected = dataclasses.replace(
        expected,
        steps=7,
        model=dataclasses.replace(expected.model, layers=2),
        optim=dataclasses.replace(expected.optim, learning_rate=1.0),
    )
    assert changed == expected
    for wrong in ({"model.layer": 2}, {"modell.layers": 2}, {"steps.layers": 2}, {"steps": "7"}):
        with pytest.raises(ConfigError, match=r"layer|steps"):
            load_recipe("nano", wrong)


def test_a_recipe_may_still_say_remat(tmp_path: Path) -> None:
    for text, kept in (("true", "nothing"), ("false", "all")):
        assert load_recipe(recipe(tmp_path, f"remat = {text}")).backward_keeps == kept
    for wrong in ("remat = 3", "remat = true\nbackward_keeps = 'all'"):
        with pytest.raises(ConfigError, match="unknown key remat"):
            load_recipe(recipe(tmp_path, wrong))


def test_settings_of_other_formats(tmp_path: Path) -> None:
    """Format 0 is that of runs made before there was a number; a newer one is not guessed at."""
    save_config(TrainConfig(steps=3), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored.pop("format") == 2 and stored.pop("sha256") and stored.pop("backward_keeps") == "auto"
    for before, kept in (({}, "auto"), ({"format": 1, "remat": True}, "nothing"), ({"remat": False}, "all")):
        (tmp_path / "config.json").write_text(json.dumps(stored | before))
        assert read_config(tmp_path) == TrainConfig(steps=3, backward_keeps=kept)
    for newer in (3, "1", None):
        (tmp_path / "config.json").write_text(json.dumps(stored | {"format": newer}))
        with pytest.raises(DataError, match="install a newer jaxgpt"):
            read_config(tmp_path)


def test_not_toml_is_a_config_error_and_no_file_a_missing_one(tmp_path: Path) -> None:
    for damaged in ("steps =", "steps = " + "9" * 5_000, "steps = " + "[" * 100_000):
        with pytest.raises(ConfigError, match="not TOML"):
            load_recipe(recipe(tmp_path, damaged))
    with pytest.raises(MissingError, match="did you mean 'nano'"):
        load_recipe("nanoo")


def test_saved_settings_read_back_the_same(tmp_path: Path) -> None:
    config = dataclasses.replace(load_recipe("nano"), seed=7, model=GPTConfig(mlp_width=100))
    save_config(config, tmp_path)
    assert read_config(tmp_path) == config


def test_every_flipped_bit_of_the_settings_is_an_error_or_changes_nothing(tmp_path: Path) -> None:
    """That of layer_norm_epsilon, say, would silently make another model."""
    config = TrainConfig(model=GPTConfig(layers=2))
    save_config(config, tmp_path)
    path = tmp_path / "config.json"
    content = path.read_bytes()
    refused = 0
    for place in range(0, 8 * len(content), 37):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            assert read_config(tmp_path) == config
        except DataError:
            refused += 1
    assert refused > 0.8 * 8 * len(content) / 37
    table = json.loads(content)
    table["model"]["layers"] = 3
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"settings have changed.*delete its sha256"):
        read_config(tmp_path)
    del table["sha256"]
    path.write_text(json.dumps(table))
    assert read_config(tmp_path).model.layers == 3


def test_a_file_of_the_run_that_has_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.tiktoken").write_text("YQ== 0\n")
    save_config(TrainConfig(), tmp_path, ["tokenizer.tiktoken"])
    assert read_config(tmp_path) == TrainConfig()
    (tmp_path / "tokenizer.tiktoken").write_text("YQ== 1\n")
    with pytest.raises(DataError, match=r"a file of the run has changed \(.*tokenizer\.tiktoken\)"):
        read_config(tmp_path)


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_config(tmp_path)
    for damaged in ("{", "[]", "[" * 100_000, "9" * 5_000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(DataError, match="not JSON"):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"stepz": 3}))
    with pytest.raises(DataError, match="unknown key stepz"):
        read_config(tmp_path)
