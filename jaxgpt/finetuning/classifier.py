"""A trained classifier for people: `classify(MODEL, texts)` gives labels and probabilities."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig
from jaxgpt.errors import ConfigError, DataError
from jaxgpt.finetuning.class_batches import Rows, encoded, padding_of
from jaxgpt.finetuning.class_head import Reads, predictor, probabilities
from jaxgpt.model.gpt import Params
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.training.state import training_model
from jaxgpt.weights.adapted import loaded_already
from jaxgpt.weights.open import open_model
from jaxgpt.weights.params import read_params
from jaxgpt.weights.run import one_device
from jaxgpt.weights.tensors import Head


class Classified(NamedTuple):
    """What a classifier finds of a text."""

    label: str
    """The most probable label."""
    probabilities: dict[str, float]
    """The probability of every label. They add up to 1."""


@dataclass(frozen=True)
class Classifier:
    """A model with a head, and the tokenizer that it reads texts with."""

    config: GPTConfig
    params: Params
    tokenizer: Tokenizer
    head: Head
    mesh: Mesh

    def classify(self, texts: Sequence[str]) -> list[Classified]:
        """The label of each text and the probabilities of all labels.

        A text that is longer than the context is cut at its end. Raises DataError that names the first text
        that is empty.
        """
        if isinstance(texts, str):
            raise ConfigError("one text", why="a list of texts is needed", fix='pass ["the text"]')
        if not texts:
            return []
        data = encoded(texts, [0] * len(texts), self.tokenizer, context=self.config.context)
        if empty := [number for number, ids in enumerate(data.ids) if not ids]:
            raise DataError(
                f"text {empty[0]} is empty", why="there is nothing to classify", fix="leave it out"
            )
        probabilities_NC = probabilities(self._predict(self.params, data))
        labels = self.head.labels
        return [
            Classified(labels[int(row_C.argmax())], dict(zip(labels, map(float, row_C), strict=True)))
            for row_C in probabilities_NC
        ]

    @functools.cached_property
    def _predict(self) -> Callable[..., np.ndarray]:
        form = Rows(context=self.config.context, padding=padding_of(self.tokenizer))
        model = training_model(self.config, self.mesh)
        return predictor(model, self.mesh, cast(Reads, self.head.reads), form)


def load_classifier(
    model: str | Path, *, adapter: str | Path | None = None, mesh: Mesh | None = None
) -> Classifier:
    """Load a classifier: a run of `jaxgpt finetune`, or a folder of GPT2ForSequenceClassification.

    An `adapter`, a run that trained one (LoRA) or a folder of PEFT's, is merged into the model, and brings
    its head. Raises MissingError when there is no such model, DataError when it is damaged, has no tokenizer,
    or is no classifier, or when the adapter was trained on another model.
    """
    stored = open_model(model, adapter=adapter)
    if stored.head is None or stored.tokenizer is None:
        raise DataError(
            "no classifier",
            path=model,
            why="the model has no head for classes" if stored.head is None else "it has no tokenizer",
            fix="name a run of `jaxgpt finetune classify`, or train one"
            if stored.head is None
            else "put its tokenizer.json beside its weights",
        )
    for note in stored.notes:
        warnings.warn(note, stacklevel=2)
    place = mesh or one_device()
    return Classifier(stored.config, read_params(stored, place), stored.tokenizer, stored.head, place)


def classify(
    model: str | Path | Classifier, texts: Sequence[str], *, adapter: str | Path | None = None
) -> list[Classified]:
    """The label of each text, and the probabilities of all labels, by a trained classifier.

    `model` names one, or is one that `load_classifier` returned; `adapter` is for one that is named, and is
    explained there. Raises what `load_classifier` and `Classifier.classify` raise, and ConfigError for an
    adapter of a model that is loaded already.
    """
    if not isinstance(model, Classifier):
        model = load_classifier(model, adapter=adapter)
    elif adapter is not None:
        raise loaded_already(adapter)
    return model.classify(texts)
