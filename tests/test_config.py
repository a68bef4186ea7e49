import dataclasses
import json
from pathlib import Path

import pytest

from jaxgpt.config import GPTConfig, TrainConfig, load_recipe, preset_names, read_config, recipes_folder, save_config
from jaxgpt.errors import ConfigError, DataError, MissingError


def recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_comment_gives_its_command(name: str) -> None:
    assert isinstance(load_recipe(name), TrainConfig)
    comment = [line for line in (recipes_folder() / f"{name}.toml").read_text().splitlines() if line.startswith("#")]
    assert any(f"jaxgpt pretrain {name}" in line for line in comment)


def test_defaults_are_gpt2_small() -> None:
    config = GPTConfig()
    assert (config.vocab, config.context, config.layers, config.heads, config.width) == (50257, 1024, 12, 12, 768)
    assert (config.mlp_size, config.head_size, config.padded_vocab) == (3072, 64, 50304)


def test_unknown_keys_and_wrong_types_are_all_listed_with_the_nearest_name(tmp_path: Path) -> None:
    path = recipe(tmp_path, 'steps = 1.5\n[optim]\nlerning_rate = 1\nschedule = "cosmic"\n[model]\nbias = 1\n')
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    for part in ("steps = 1.5", "optim.lerning_rate (did you mean 'learning_rate'?)", "'cosmic'", "model.bias = 1"):
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


def test_not_toml_is_a_config_error_and_no_file_a_missing_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not TOML"):
        load_recipe(recipe(tmp_path, "steps ="))
    with pytest.raises(MissingError, match="did you mean 'nano'"):
        load_recipe("nanoo")


def test_saved_settings_read_back_the_same(tmp_path: Path) -> None:
    config = dataclasses.replace(load_recipe("nano"), seed=7, model=GPTConfig(mlp_width=100))
    save_config(config, tmp_path)
    assert read_config(tmp_path) == config


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"stepz": 3}))
    with pytest.raises(DataError, match="unknown key stepz"):
        read_config(tmp_path)
