"""Classification as a task: labelled texts, a head on a given model, and what is measured on other texts."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import ClassifyConfig
from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.classes import Calibration, Confusion
from jaxgpt.evaluation.report import refresh_report
from jaxgpt.finetuning.chosen import chosen_of, steps_of
from jaxgpt.finetuning.class_batches import Encoded, Rows, TrainingTexts, encoded, padding_of, shown_texts
from jaxgpt.finetuning.class_head import class_loss, class_losses, mean_loss, predictor, probabilities
from jaxgpt.finetuning.lora import finetuned_model
from jaxgpt.parallel import mesh_of
from jaxgpt.text.labelled import (
    Labelled,
    Split,
    balanced,
    counts_of,
    divided,
    labels_of,
    leaks,
    read_labelled,
)
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.initial import with_architecture
from jaxgpt.training.loop import Event
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Details, Task, TrainingData

Tell = Callable[[str], None]


class LabelledData(NamedTuple):
    """The texts of a run, divided and encoded."""

    train: Encoded
    val: Encoded
    test: Encoded
    fingerprint: str
    """A hash of everything that decides the examples."""


def classification(
    config: ClassifyConfig, *, tell: Tell, stated: Collection[str] = (), progress: Progress = no_progress
) -> tuple[ClassifyConfig, Task]:
    """The recipe, with the labels of its data and the steps of its epochs, and the task that it describes.

    The model that the run begins with decides the architecture; `stated` are the settings that a person gave
    by name, which must not differ from it. Raises what `read_labelled` and `divided` raise, and ConfigError
    where the labels of the data are not those of the recipe.
    """
    config = with_architecture(config, stated, tell)
    split, notes = split_of(config)
    labels = labels_of([*split.train, *split.val, *split.test], Path(config.data.path))
    if config.labels and set(config.labels) != set(labels):
        raise ConfigError(
            f"labels = {', '.join(config.labels)}",
            why=f"the data has the labels {', '.join(labels)}",
            fix="leave the labels out, or name all those of the data",
        )
    labels = config.labels or labels
    tokenizer = load_tokenizer(config.data.tokenizer)
    model_config = dataclasses.replace(config.model, vocab=tokenizer.vocab, classes=len(labels))
    config = dataclasses.replace(config, labels=labels, model=model_config)
    data = _encoded(split, config, tokenizer)
    for part in ("train", "val", "test"):
        tell(f"{part}: {counts_of(getattr(split, part))}")
        if cut := getattr(data, part).cut:
            notes.append(f"{cut:,} {part} texts are longer than the model reads, and their ends are left out")
    for text in notes:
        tell(text)
    config = dataclasses.replace(config, steps=steps_of(config, len(data.train.ids)))
    mesh = mesh_of(config.mesh)
    return config, _task(config, tokenizer, data, mesh, progress)


def _task(
    config: ClassifyConfig, tokenizer: Tokenizer, data: LabelledData, mesh: Mesh, progress: Progress
) -> Task:
    model = finetuned_model(config, mesh)
    rows_of = Rows(
        context=config.model.context,
        padding=padding_of(tokenizer),
        length=data.train.longest if config.reads == "end" else None,
    )
    training = TrainingTexts(data.train, rows_of, sequences=config.sequences, seed=config.seed)
    predict = predictor(model, mesh, config.reads, rows_of)

    def open_data(_: Path, stop: Stop) -> TrainingData:
        between = functools.partial(stop.checked(progress), "evaluating")

        def measure(state: TrainState, name: str, part: Encoded) -> dict[str, Any]:
            return _figures(predict(state.params, part, between), part, config.model.classes, name)

        events = []
        if config.eval_every and data.val.ids:
            run = functools.partial(measure, name="val", part=data.val)
            events.append(Event("val_loss", config.eval_every, run, also=("val_accuracy", "val_macro_f1")))
        if data.test.ids:
            run = functools.partial(measure, name="test", part=data.test)
            events.append(Event("test_loss", config.steps, run))
        return TrainingData(
            fingerprint=data.fingerprint, rows=training.rows, origins=training.origins, events=events
        )

    tokens = sum(map(len, data.train.ids)) // len(data.train.ids)
    return Task(
        mesh=mesh,
        model=model,
        loss=class_loss(model, config.reads),
        details=Details(
            class_losses(model, config.reads),
            functools.partial(shown_texts, labels=config.labels, tokenizer=tokenizer),
        ),
        tokenizer=tokenizer,
        chosen=chosen_of(config, always="score/.*"),
        tokens_per_step=tokens * config.sequences,
        open_data=open_data,
        report=refresh_report,
    )


def split_of(config: ClassifyConfig) -> tuple[Split, list[str]]:
    """The labelled texts, divided, and sentences about what was noticed."""
    data, path = config.data, Path(config.data.path)
    rows, notes = read_labelled(path, text_column=data.text_column, label_column=data.label_column)
    labels_of(rows, path)
    if data.balance:
        notes.append(f"balanced: {counts_of(rows)} become {counts_of(rows := balanced(rows, config.seed))}")
    split = divided(rows, val=data.val_fraction, test=data.test_fraction, seed=config.seed, path=path)
    return split, notes + leaks(split)


def _encoded(split: Split, config: ClassifyConfig, tokenizer: Tokenizer) -> LabelledData:
    """The texts as ids. None is longer than the longest training text where the head reads ends of rows."""
    number = {label: place for place, label in enumerate(config.labels)}

    def encode(rows: list[Labelled], longest: int) -> Encoded:
        texts, labels = [row.text for row in rows], [number[row.label] for row in rows]
        return encoded(texts, labels, tokenizer, context=longest)

    train = encode(split.train, config.model.context)
    longest = train.longest if config.reads == "end" else config.model.context
    val, test = encode(split.val, longest), encode(split.test, longest)
    told = [config.labels, *((part.ids, part.labels) for part in (train, val, test))]
    return LabelledData(train, val, test, hashlib.sha256(json.dumps(told).encode()).hexdigest())


def _figures(logits_NC: np.ndarray, part: Encoded, classes: int, name: str) -> dict[str, Any]:
    """What is logged of the predictions for these texts."""
    confusion = Confusion.of(part.labels, logits_NC.argmax(axis=1), classes)
    calibration = Calibration.of(part.labels, probabilities(logits_NC))
    return {
        f"{name}_loss": mean_loss(logits_NC, part.labels),
        f"{name}_accuracy": confusion.accuracy,
        f"{name}_macro_f1": confusion.macro_f1,
        f"{name}_calibration_error": calibration.error,
        f"{name}_confusion": json.dumps(confusion.counts_CC.tolist()),
        f"{name}_calibration": json.dumps([each_B.tolist() for each_B in calibration]),
    }
