"""How a model is laid out to be used: the flags that generate, chat and serve share."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxgpt.config import MeshConfig

if TYPE_CHECKING:
    from jaxgpt.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """See the module's docstring."""

    int8: bool = False
    """Round the weights to int8, a scale for each output: a quarter of the memory."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations, matrix products and the cache; bfloat16 is for TPUs and recent GPUs."""
    tensor: int = 1
    """Devices that share every matrix and the attention heads."""

    def load(self, model: str) -> "LanguageModel":
        """The model on those devices. Raises ConfigError where there are not so many."""
        import jax

        from jaxgpt.errors import ConfigError
        from jaxgpt.language_model import load
        from jaxgpt.parallel import mesh_of

        devices = jax.local_devices()
        if not 1 <= self.tensor <= len(devices):
            raise ConfigError(
                f"tensor = {self.tensor}", why=f"there are {len(devices)} devices", fix="change it"
            )
        lm = load(model, mesh=mesh_of(MeshConfig(data=1, tensor=self.tensor), devices[: self.tensor]))
        return dataclasses.replace(
            lm, config=dataclasses.replace(lm.config, compute_dtype=self.compute_dtype)
        )
