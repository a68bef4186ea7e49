"""The flags that generate, chat and serve share: how a model is held in memory to be used."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxgpt.config import MeshConfig

if TYPE_CHECKING:
    from jaxgpt.inference.served import Served
    from jaxgpt.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How a model is held in memory: the flags that generate, chat and serve share."""

    int8: bool = False
    """Round the weights to 8-bit integers, which take a quarter of the memory.
    Each output of a matrix keeps a scale of its own. The results change a little."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of activations, matrix products and the cache. bfloat16 is for TPUs and recent GPUs."""
    tensor: int = 1
    """Number of devices over which every matrix and the attention heads are split."""

    def load(self, model: str) -> "LanguageModel":
        """Return the model, on these devices. Raises ConfigError if there are fewer devices."""
        import jax

        from jaxgpt.errors import ConfigError
        from jaxgpt.language_model import load
        from jaxgpt.parallel import mesh_of

        devices = jax.local_devices()
        if not 1 <= self.tensor <= len(devices):
            raise ConfigError(
                f"tensor = {self.tensor}",
                why=f"there are {len(devices)} devices",
                fix=f"give a number from 1 to {len(devices)}",
            )
        lm = load(model, mesh=mesh_of(MeshConfig(data=1, tensor=self.tensor), devices[: self.tensor]))
        return dataclasses.replace(
            lm, config=dataclasses.replace(lm.config, compute_dtype=self.compute_dtype)
        )

    def served(self, lm: "LanguageModel") -> "Served":
        """The model laid out to write text; its own parameters are used up."""
        from jaxgpt.inference.served import Served

        return Served.of(lm.text_config, lm.params, int8=self.int8, consume=True)
