"""A trained model for people: `load(MODEL)` gives config, parameters and tokenizer in one object."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.engine import generate_ids
from jaxgpt.inference.sampling import Sampling
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.batches import check_ids
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.weights.convert import open_model, tokenizer_of, write_model
from jaxgpt.weights.params import read_params, stored_params
from jaxgpt.weights.run import is_run, one_device, read_run
from jaxgpt.weights.tensors import StoredModel


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer. `params` is a plain nested dict; computations are in float32 unless config says so."""

    config: GPTConfig
    params: Params
    given_tokenizer: Tokenizer | None
    """None where the model came without one; `tokenizer` then says so."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises DataError when the model came without one."""
        if self.given_tokenizer is None:
            raise DataError(
                "no tokenizer", fix="put its tokenizer.json beside its weights",
                why=f"the model came without one, and its {self.config.vocab} ids are not GPT-2's",
            )  # fmt: skip
        return self.given_tokenizer

    def logits(self, tokens_BT: np.ndarray) -> Array:
        """float32 logits [B, T, V] for ids [B, T].

        Raises ConfigError for more tokens than the context, DataError for an id outside the vocabulary.
        """
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.shape[1] > self.config.context:
            raise ConfigError(
                f"{tokens_BT.shape[1]} tokens", why=f"the context is {self.config.context}", fix="pass fewer tokens"
            )
        return _logits(self.params, jnp.asarray(check_ids(tokens_BT, self.config.vocab)), config=self.config)

    def stream(
        self, prompt: str, *, max_new_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """Token ids that continue a prompt, one by one; ends early where the model ends its text.

        An empty prompt starts a new text. Past the context window the oldest half is dropped (inference.engine).
        """
        end = self.tokenizer.end_of_text
        ids = self.tokenizer.encode(prompt) or [end]
        new = generate_ids(self.params, self.config, ids, sampling=sampling or Sampling(), seed=seed, end=end)
        return itertools.islice(new, max_new_tokens)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """The continuation of each prompt (without the prompt), each drawn with the same seed, independently."""
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        return [
            self.tokenizer.decode(list(self.stream(p, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)))
            for p in prompts
        ]

    def save(self, path: str | Path, format: str = "huggingface") -> None:
        """Write the model: `huggingface`, `jaxgpt`, `llmc` or `nanogpt` (`weights.convert`).

        Raises ConfigError when something is at `path` already or the format cannot say what this model is.
        """
        stored = stored_params(self.config, self.params)
        write_model(StoredModel(self.config, stored.tensors, self.given_tokenizer), Path(path), format)


def load(model: str | Path, *, mesh: Mesh | None = None, layer_norm_epsilon: float | None = None) -> LanguageModel:
    """Load MODEL: a run directory, a folder or file of weights in any format, or a public name such as `gpt2`.

    Parameters keep their stored dtype and go straight to their place on `mesh` (default: this process's first device).
    Of a run, the newest checkpoint is taken, averaged where it keeps an average. `layer_norm_epsilon` is for OpenAI's
    files, which do not state it. Raises MissingError when there is no such model, DataError when it is damaged.
    """
    mesh = mesh or one_device()
    folder = Path(model)
    if is_run(folder):
        config, params = read_run(folder, mesh)
        return LanguageModel(config, params, tokenizer_of(folder, config.vocab))
    stored = open_model(model, layer_norm_epsilon=layer_norm_epsilon)
    for note in stored.notes:
        warnings.warn(note, stacklevel=2)
    return LanguageModel(stored.config, read_params(stored, mesh), stored.tokenizer)


@jax.jit(static_argnames="config")
def _logits(params: Params, tokens_BT: Array, *, config: GPTConfig) -> Array:
    return define(config).apply(params, tokens_BT)
