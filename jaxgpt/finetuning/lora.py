"""Fine-tuning by adapters (LoRA): what any task needs in order to train them in place of the model itself."""

import shlex
from collections.abc import Callable

from jax.sharding import Mesh

from jaxgpt.config import FinetuneConfig
from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Model, Params
from jaxgpt.model.layers import AS_TRAINED, Layers
from jaxgpt.model.lora import LoraLayers, check_targets, divided, merged
from jaxgpt.training.state import training_model
from jaxgpt.weights.adapted import is_adapter
from jaxgpt.weights.run import named_step


def finetuned_model(config: FinetuneConfig, mesh: Mesh) -> Model:
    """The model as a run with these settings trains it: with adapters where it trains adapters.

    Raises ConfigError for adapters without a model to adapt, or of no layer, and for adapters on adapters.
    """
    layers: Layers = AS_TRAINED
    if config.adapts:
        if config.init_from is None:
            why = "adapters change a model that was trained already"
            raise ConfigError("trains = lora", why=why, fix="name the model: --from MODEL")
        if is_adapter(named_step(config.init_from)[0]):
            # Merging rounds differently on other devices, so that the base could not be known again.
            source = shlex.quote(config.init_from)
            raise ConfigError(
                f"--from {config.init_from}",
                why="it holds an adapter, and adapters need a base that is a whole model",
                fix=f"merge it first (jaxgpt convert {source} MERGED --to jaxgpt), and write --from MERGED",
            )
        check_targets(config.lora)
        layers = LoraLayers(config.lora)
    return training_model(
        config.model, mesh, keeps=config.backward_keeps, blocks=config.blocks, layers=layers
    )


def plain_params(config: FinetuneConfig) -> Callable[[Params], Params]:
    """A function from the parameters of such a run to those of a plain model that does the same."""
    return lambda params: merged(*divided(params), config.lora) if config.adapts else params
