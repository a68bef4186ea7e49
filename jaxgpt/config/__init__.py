"""Settings: frozen dataclasses that are checked when they are made. Nothing here imports JAX."""

from jaxgpt.config.model import GPTConfig
from jaxgpt.config.reading import (
    CONFIG_FILE,
    flag_of,
    flat,
    is_named,
    load_recipe,
    preset_names,
    read_config,
    recipes_folder,
    save_config,
    stated_in,
    with_settings,
)
from jaxgpt.config.recipe import DataConfig, MeshConfig, OptimConfig, TrainConfig

__all__ = [
    "CONFIG_FILE",
    "DataConfig",
    "GPTConfig",
    "MeshConfig",
    "OptimConfig",
    "TrainConfig",
    "flag_of",
    "flat",
    "is_named",
    "load_recipe",
    "preset_names",
    "read_config",
    "recipes_folder",
    "save_config",
    "stated_in",
    "with_settings",
]
