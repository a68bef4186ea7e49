"""jaxgpt: from text to a trained GPT-2-class language model and back to text, in JAX and Flax NNX.

Array names end in their shape, one letter an axis, everywhere in this package:

    B batch    T query positions    S key and value positions    D width    H heads    K head size
    F MLP width    V vocabulary    N layers    C classes
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from jaxgpt.config import GPTConfig, TrainConfig, load_recipe
    from jaxgpt.errors import JaxgptError, StoppedError
    from jaxgpt.finetuning.classifier import Classified, classify
    from jaxgpt.language_model import LanguageModel, load
    from jaxgpt.measuring import evaluate
    from jaxgpt.model.gpt import Model, define
    from jaxgpt.runs import Run, train
    from jaxgpt.text.tokenizer import Tokenizer
    from jaxgpt.text.tokenizer_files import load_tokenizer

_HOMES = {
    "GPTConfig": "config",
    "TrainConfig": "config",
    "load_recipe": "config",
    "Classified": "finetuning.classifier",
    "classify": "finetuning.classifier",
    "JaxgptError": "errors",
    "StoppedError": "errors",
    "LanguageModel": "language_model",
    "load": "language_model",
    "evaluate": "measuring",
    "Model": "model.gpt",
    "define": "model.gpt",
    "Run": "runs",
    "train": "runs",
    "Tokenizer": "text.tokenizer",
    "load_tokenizer": "text.tokenizer_files",
}
__all__ = [
    "Classified",
    "GPTConfig",
    "JaxgptError",
    "LanguageModel",
    "Model",
    "Run",
    "StoppedError",
    "Tokenizer",
    "TrainConfig",
    "classify",
    "define",
    "evaluate",
    "load",
    "load_recipe",
    "load_tokenizer",
    "train",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: importing jaxgpt imports no JAX."""
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jaxgpt")
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxgpt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, for completion and for `help(jaxgpt)`."""
    return [*__all__, "__version__"]
