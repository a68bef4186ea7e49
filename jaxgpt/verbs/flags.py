"""Flags that several verbs take: how the next token is chosen, and how a model is held in memory."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from jaxgpt.config import MeshConfig
from jaxgpt.errors import ConfigError
from jaxgpt.inference.defaults import MAX_NEW_TOKENS, TEMPERATURE, TOP_K, random_seed

if TYPE_CHECKING:
    from jaxgpt.inference.sampling import Sampling
    from jaxgpt.inference.served import Served
    from jaxgpt.language_model import LanguageModel

_ESCAPES = {r"\n": "\n", r"\r": "\r", r"\t": "\t", r"\\": "\\"}


@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How the next token is chosen: the flags that `generate` and `chat` share."""

    max_new_tokens: int = MAX_NEW_TOKENS
    """Largest number of tokens that the model writes. It may end its text earlier."""
    temperature: float = TEMPERATURE
    """Below 1, the model prefers probable tokens more strongly, and its text becomes more predictable.
    Above 1, improbable tokens are chosen more often, and its text becomes more varied.
    0 always takes the most probable token (greedy decoding)."""
    top_k: int = TOP_K
    """Choose only among this many most probable tokens. 0 means among all."""
    top_p: float = 1.0
    """Choose only among the most probable tokens that together have at least this probability.
    1 means among all."""
    min_p: float = 0.0
    """Choose only among tokens that have at least this share of the most probable token's probability.
    0 means among all."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that occur in the text so far become less probable. The prompt counts.
    1 changes nothing."""
    presence_penalty: float = 0.0
    """Number that is subtracted from the logit of every token that was written already.
    The prompt does not count."""
    frequency_penalty: float = 0.0
    """Number that is subtracted from a token's logit for each time it was written.
    The prompt does not count."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End the text before this string. The flag may be given several times.
    \\n stands for a new line, \\t for a tab, and \\\\ for a backslash."""
    seed: int | None = None
    """Starting point of the random numbers. The same seed gives the same text.
    None takes a random one, which is shown."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings of --stop, in which a backslash and a letter stand for what cannot be typed."""
        return tuple(re.sub(r"\\[nrt\\]", lambda found: _ESCAPES[found[0]], text) for text in self.stop)

    def first_seed(self) -> int:
        """The seed of the first text. Where none was given it is random, and shown if anything is drawn."""
        if self.seed is not None:
            return self.seed
        from jaxgpt.display import note

        seed = random_seed()
        if self.temperature > 0:
            note(f"seed {seed} (--seed {seed} writes the same again)")
        return seed

    def sampling(self) -> "Sampling":
        """Return these settings for the engine. Raises ConfigError for values that are impossible."""
        from jaxgpt.inference.sampling import Sampling

        if self.max_new_tokens < 0:
            raise ConfigError(
                f"max_new_tokens = {self.max_new_tokens}",
                why="it must be 0 or more",
                fix="give the number of tokens to write",
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ConfigError(
                f"seed = {self.seed}",
                why="it must be a 64-bit integer",
                fix=f"give a whole number from {-(2**63)} to {2**63 - 1}",
            )
        return Sampling(**{name: getattr(self, name) for name in Sampling.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How a model is held in memory: the flags that generate, chat and serve share."""

    int8: bool = False
    """Round the weights to 8-bit integers, which take a quarter of the memory.
    Each output of a matrix keeps a scale of its own. The results change a little.
    On a CPU text is written faster too."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights, activations and matrix products.
    bfloat16 takes half of the memory and is faster, but less exact."""
    tensor: int = 1
    """Number of devices over which every matrix and the attention heads are split."""

    def load(self, model: str, adapter: str | None = None) -> "LanguageModel":
        """Return the model on these devices, with an adapter merged into it where one is named.

        Raises ConfigError if there are fewer devices.
        """
        import jax

        from jaxgpt.language_model import load
        from jaxgpt.parallel import mesh_of

        devices = jax.local_devices()
        if not 1 <= self.tensor <= len(devices):
            raise ConfigError(
                f"tensor = {self.tensor}",
                why=f"there are {len(devices)} devices",
                fix=f"give a number from 1 to {len(devices)}",
            )
        mesh = mesh_of(MeshConfig(data=1, tensor=self.tensor), devices[: self.tensor])
        lm = load(model, adapter=adapter, mesh=mesh)
        return dataclasses.replace(
            lm, config=dataclasses.replace(lm.config, compute_dtype=self.compute_dtype)
        )

    def served(self, lm: "LanguageModel") -> "Served":
        """The model laid out to write text; its own parameters are used up."""
        from jaxgpt.inference.served import Served

        return Served.of(lm.text_config, lm.params, int8=self.int8, consume=True)


@dataclass(frozen=True, kw_only=True)
class AdapterFlags:
    """An adapter beside the model: the flag of the verbs that use one model."""

    adapter: str | None = None
    """Adapter (LoRA) that is merged into MODEL: a run that trained one, or a folder of PEFT's."""


def home_of(file: str, model: str, adapter: str | None) -> str:
    """Where a file of this name is looked for: with the adapter if it has one, otherwise with the model."""
    from jaxgpt.weights.run import named_step

    return adapter if adapter and (named_step(adapter)[0] / file).is_file() else model


def check_output(flag: str, path: Path | None) -> None:
    """Raise ConfigError where a file that is written in the end, after long work, could not be."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.absolute().parent}"
        raise ConfigError(flag, path=path, why=why, fix="name a file in a folder that exists")
