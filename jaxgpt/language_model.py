"""A trained model for people: `load(MODEL)` gives config, parameters and tokenizer in one object."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.inference.texts import texts_of
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.batch import check_ids
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.weights.convert import write_model
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params, stored_params
from jaxgpt.weights.run import one_device
from jaxgpt.weights.tensors import StoredModel

MOST_SLOTS = 8  # texts that `generate` continues at a time


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer.

    `params` is a plain nested dict. Computations are in float32, unless `config` says otherwise.
    """

    config: GPTConfig
    params: Params = field(repr=False)
    given_tokenizer: Tokenizer | None
    """None where the model came without one; `tokenizer` then says so."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer. Raises DataError when the model came without one."""
        if self.given_tokenizer is None:
            raise DataError(
                "no tokenizer",
                fix="put its tokenizer.json, with byte-level BPE, beside its weights",
                why=f"the model came without one that we read, and its {self.config.vocab} ids are not "
                "GPT-2's",
            )
        return self.given_tokenizer

    @property
    def text_config(self) -> GPTConfig:
        """`config` for writing text, in which only the ids exist that the tokenizer has a text for.

        A stored model may have more ids: 50,304, say, where GPT-2's tokenizer has 50,257.
        """
        return (
            self.config if self.given_tokenizer is None else self.config.with_only(self.given_tokenizer.vocab)
        )

    def logits(self, tokens_BT: np.ndarray) -> Array:
        """float32 logits [B, T, V] for ids [B, T].

        Raises ConfigError for more tokens than the context, DataError for an id outside the vocabulary.
        """
        tokens_BT = np.asarray(tokens_BT)
        if tokens_BT.shape[1] > self.config.context:
            raise ConfigError(
                f"{tokens_BT.shape[1]} tokens",
                why=f"the context is {self.config.context}",
                fix="pass fewer tokens",
            )
        ids_BT = jnp.asarray(check_ids(tokens_BT, self.config.vocab))
        logits_BTV: Array = _logits(self.params, ids_BT, config=self.config)
        return logits_BTV

    @functools.cached_property
    def served(self) -> Served:
        """The model laid out to write and score text.

        It is a second copy of the parameters, made once, when it is first needed.
        """
        return Served.of(self.text_config, self.params)

    def engine(self, slots: int = 1) -> Engine:
        """A new engine that continues so many texts at a time, over the parameters of `served`."""
        end = self.given_tokenizer.end_of_text if self.given_tokenizer else None
        return Engine(self.served, slots=slots, end=end)

    def request(
        self, prompt: str, *, max_new_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Request:
        """What the engine is asked for to continue a text; an empty one starts a new text."""
        ids = self.tokenizer.prompt_ids(prompt)
        return Request(
            prompt=tuple(ids), max_new_tokens=max_new_tokens, sampling=sampling or Sampling(), seed=seed
        )

    def stream(
        self, prompt: str, *, max_new_tokens: int = 100, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """Token ids that continue a prompt, one by one; ends early where the model ends its text.

        Past the context window the oldest half is dropped (inference.engine).
        """
        request = self.request(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        for _, new in self.engine().run([request]):
            if new.written is not None:
                yield new.written

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """The continuation of each prompt (without the prompt), each drawn with the same seed, independently.

        It ends before the first of the `stop` strings, after `max_new_tokens`, or where the model ends its
        text.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        requests = [
            self.request(p, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed) for p in prompts
        ]
        slots = min(MOST_SLOTS, 1 << max(0, len(prompts) - 1).bit_length())
        return texts_of(self.engine(slots), requests, self.tokenizer, stop)

    def save(self, path: str | Path, format: str = "huggingface") -> None:
        """Write the model: `huggingface`, `jaxgpt`, `llmc` or `nanogpt` (`weights.convert`).

        Raises ConfigError when something is at `path` already or the format cannot say what this model is.
        """
        stored = stored_params(self.config, self.params)
        write_model(StoredModel(self.config, stored.tensors, self.given_tokenizer), Path(path), format)


def load(
    model: str | Path, *, mesh: Mesh | None = None, layer_norm_epsilon: float | None = None
) -> LanguageModel:
    """Load MODEL: a run directory, a folder or file of weights in any format, or a public name such as
    `gpt2`.

    Parameters keep their stored dtype and go straight to their place on `mesh` (default: this process's first
    device). Of a run, the newest checkpoint is taken, averaged where it keeps an average.
    `layer_norm_epsilon` is for OpenAI's files, which do not state it. Raises MissingError when there is no
    such model, DataError when it is damaged.
    """
    stored = open_model(model, layer_norm_epsilon=layer_norm_epsilon)
    for note in stored.notes:
        warnings.warn(note, stacklevel=2)
    return LanguageModel(stored.config, read_params(stored, mesh or one_device()), stored.tokenizer)


@jax.jit(static_argnames="config")
def _logits(params: Params, tokens_BT: Array, *, config: GPTConfig) -> Array:
    return define(config).apply(params, tokens_BT)
