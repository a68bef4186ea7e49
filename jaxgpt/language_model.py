"""A trained model for people: `load(MODEL)` gives config, parameters and tokenizer in one object."""

import dataclasses
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.inference.defaults import MAX_NEW_TOKENS, TEMPERATURE, TOP_K, random_seed
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
from jaxgpt.inference.texts import texts_of
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.batch import check_ids
from jaxgpt.text.chat_template import DEFAULT, ChatTemplate
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.weights.convert import write_model
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params, stored_params
from jaxgpt.weights.run import one_device

MOST_SLOTS = 8  # texts that `generate` continues at a time
WRITING = Sampling(temperature=TEMPERATURE, top_k=TOP_K)
Prompts = TypeVar("Prompts", str, list[str])

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer.

    `params` is a plain nested dict. Computations are in float32, unless `config` says otherwise.
    """

    config: GPTConfig
    params: Params = field(repr=False)
    given_tokenizer: Tokenizer | None
    """None where the model came without one; `tokenizer` then says so."""
    stated_ends: frozenset[int] = frozenset()
    """The ids that end a text, as the model's files state them; `ends` also knows the tokenizer's."""
    templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Its chat templates by their names, as the model's files hold them."""

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

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template that makes a text of a conversation; None where the model came without one."""
        source = self.templates.get(DEFAULT)
        return None if source is None else ChatTemplate(source, self.tokenizer.special_tokens)

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text: those that the model's files state, or else the tokenizer's."""
        ends = self.stated_ends or (self.given_tokenizer.ends if self.given_tokenizer else frozenset())
        return frozenset(id for id in ends if id < self.text_config.vocab)

    def logits(self, tokens_BT: np.ndarray) -> Array:
        """float32 logits [B, T, V] for ids [B, T].

        Raises ConfigError for what are no ids in two dimensions and for more tokens than the context,
        DataError for an id outside the vocabulary.
        """
        tokens_BT = _ids(tokens_BT)
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
        return Engine(self.served, slots=slots, ends=self.ends)

    def request(
        self,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = WRITING,
        seed: int | None = None,
    ) -> Request:
        """What the engine is asked for to continue a text; an empty one starts a new text.

        Without a `seed`, a random one is taken.
        """
        ids = self.tokenizer.prompt_ids(prompt)
        seed = random_seed() if seed is None else seed
        return Request(prompt=tuple(ids), max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = WRITING,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Token ids that continue a prompt, one by one; ends early where the model ends its text.

        Past the context window the oldest half is dropped (inference.engine). Without a `seed`, a random one
        is taken.
        """
        request = self.request(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        for _, new in self.engine().run([request]):
            if new.written is not None:
                yield new.written

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = TEMPERATURE,
        top_k: int = TOP_K,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Prompts:
        """The continuation of each prompt, without the prompt: a string for a string, a list for a list.

        It ends before the first of the `stop` strings, after `max_new_tokens`, or where the model ends its
        text. Text n of a list, counted from 0, is drawn with `seed` + n. Without a `seed`, a random one is
        taken and logged. Raises ConfigError for prompts that are no texts.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        if seed is None:
            seed = random_seed()
            logger.info("seed %d", seed)
        requests = [
            self.request(prompt, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed + number)
            for number, prompt in enumerate(_texts(prompts))
        ]
        slots = min(MOST_SLOTS, 1 << max(0, len(requests) - 1).bit_length())
        stop = (stop,) if isinstance(stop, str) else stop
        texts = texts_of(self.engine(slots), requests, self.tokenizer, stop)
        if isinstance(prompts, str):
            return texts[0]
        return texts

    def save(self, path: str | Path, format: str = "huggingface") -> None:
        """Write the model: `huggingface`, `jaxgpt`, `llmc` or `nanogpt` (`weights.convert`).

        Raises ConfigError when something is at `path` already or the format cannot say what this model is.
        """
        stored = dataclasses.replace(
            stored_params(self.config, self.params),
            tokenizer=self.given_tokenizer,
            stated_ends=self.stated_ends,
            templates=self.templates,
        )
        write_model(stored, Path(path), format)


def load(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    mesh: Mesh | None = None,
    layer_norm_epsilon: float | None = None,
) -> LanguageModel:
    """Load MODEL: a run directory, a folder or file of weights in any format, or a public name such as
    `gpt2`.

    Parameters keep their stored dtype and go straight to their place on `mesh` (default: this process's first
    device). Of a run, the newest checkpoint is taken, averaged where it keeps an average. `RUN@best` names
    the best one, `RUN@500` that of step 500. An `adapter`, a run that trained one (LoRA) or a folder of
    PEFT's, is merged into the model, in float32.
    `layer_norm_epsilon` is for OpenAI's files, which do not state it. Raises MissingError when there is no
    such model, DataError when it is damaged, or when the adapter was trained on another model.
    """
    stored = open_model(model, adapter=adapter, layer_norm_epsilon=layer_norm_epsilon)
    for note in stored.notes:
        warnings.warn(note, stacklevel=2)
    params = read_params(stored, mesh or one_device())
    return LanguageModel(stored.config, params, stored.tokenizer, stored.stated_ends, stored.templates)


def _ids(tokens: Any) -> np.ndarray:
    """Token ids as an array [B, T]. Raises ConfigError for what is no such array."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # rows of different lengths
        ids = np.empty(0, object)
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ConfigError(
            "tokens",
            why="they must be whole numbers in two dimensions, [texts, tokens], "
            f"not {ids.dtype} of shape {ids.shape}",
            fix="for one text, pass [lm.tokenizer.encode(text)]",
        )
    return ids


def _texts(prompts: Any) -> list[str]:
    """The prompts as a list. Raises ConfigError for what are no texts."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if np.iterable(prompts) else [prompts]
    if wrong := [type(text).__name__ for text in texts if not isinstance(text, str)]:
        raise ConfigError(
            f"prompts: {wrong[0]}",
            why="a prompt is a text",
            fix="pass a string or a list of strings; lm.tokenizer.decode(ids) makes one of ids",
        )
    return texts


@jax.jit(static_argnames="config")
def _logits(params: Params, tokens_BT: Array, *, config: GPTConfig) -> Array:
    return define(config).apply(params, tokens_BT)
