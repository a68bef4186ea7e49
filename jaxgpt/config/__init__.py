"""Settings: frozen dataclasses that are checked when they are made. Nothing here imports JAX."""

from jaxgpt.config.architectures import EncoderConfig, RNNConfig, Seq2SeqConfig
from jaxgpt.config.finetuning import (
    AnswerConfig,
    ClassifyConfig,
    DialogueConfig,
    FinetuneConfig,
    InstructConfig,
    LabelledConfig,
    LoraConfig,
    PairConfig,
    PreferenceConfig,
)
from jaxgpt.config.measured import EvaluationConfig, LanguageConfig
from jaxgpt.config.model import GPTConfig
from jaxgpt.config.pretraining import DataConfig, TrainConfig
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
    task_of,
    with_settings,
)
from jaxgpt.config.recipe import BackwardKeeps, Keeps, MeshConfig, OptimConfig, RunConfig
from jaxgpt.config.writing import recipe_text

__all__ = [
    "CONFIG_FILE",
    "AnswerConfig",
    "ClassifyConfig",
    "DataConfig",
    "DialogueConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FinetuneConfig",
    "GPTConfig",
    "InstructConfig",
    "BackwardKeeps",
    "Keeps",
    "LanguageConfig",
    "LabelledConfig",
    "LoraConfig",
    "MeshConfig",
    "OptimConfig",
    "PairConfig",
    "PreferenceConfig",
    "RNNConfig",
    "RunConfig",
    "Seq2SeqConfig",
    "TrainConfig",
    "flag_of",
    "flat",
    "is_named",
    "load_recipe",
    "preset_names",
    "read_config",
    "recipe_text",
    "recipes_folder",
    "save_config",
    "stated_in",
    "task_of",
    "with_settings",
]
