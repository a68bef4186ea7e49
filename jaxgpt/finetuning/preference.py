"""Preference tuning as a task: pairs of answers, the loss of direct preference optimization, its figures."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxgpt import hosts
from jaxgpt.config import PreferenceConfig
from jaxgpt.display import Progress, no_progress
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.during import events_of, opened
from jaxgpt.evaluation.report import refresh_report
from jaxgpt.evaluation.validation import validation_means
from jaxgpt.finetuning import reference
from jaxgpt.finetuning.chosen import chosen_of, steps_of
from jaxgpt.finetuning.dialogue_batches import OrderedRows, TrainingRows
from jaxgpt.finetuning.dialogue_task import check_fits, questions_file, sample_answers, split_of
from jaxgpt.finetuning.lora import finetuned_model, plain_params
from jaxgpt.finetuning.preference_batches import EncodedPair, PairRows, encode_pairs, shown_pairs
from jaxgpt.finetuning.preference_loss import (
    answer_log_probabilities,
    answer_token_losses,
    pair_losses,
    preference_loss,
)
from jaxgpt.inference.templates import Plain, Template, template_of
from jaxgpt.parallel import mesh_of
from jaxgpt.text.chat_template import DEFAULT, ChatTemplate
from jaxgpt.text.dialogues import Divided
from jaxgpt.text.preferences import Pair, read_pairs
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.initial import with_architecture
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss
from jaxgpt.training.resume import recipe_in
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Details, Task, TrainingData
from jaxgpt.weights.open import open_model

Tell = Callable[[str], None]


class PreferenceData(NamedTuple):
    """The pairs of a run."""

    train: list[EncodedPair]
    val: list[EncodedPair]
    test: Sequence[Pair]

    @property
    def question(self) -> list[int]:
        """The ids of the first validation question, which the samples answer."""
        return [*self.val[0][0].ids[: self.val[0][0].start]] if self.val else []

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the examples."""
        return hashlib.sha256(json.dumps([self.train, self.val]).encode()).hexdigest()


def preference_tuning(
    config: PreferenceConfig, *, tell: Tell, stated: Collection[str] = (), progress: Progress = no_progress
) -> tuple[PreferenceConfig, Task]:
    """The recipe, with the steps of its epochs, and the task that it describes.

    The model that the run begins with decides the architecture; `stated` are the settings that a person gave
    by name, which must not differ from it. Raises what `read_pairs`, `divided` and `evaluation.during.opened`
    raise, ConfigError where no model is named, and DataError where no training pair fits the context.
    """
    begun = hosts.decide(lambda: recipe_in(Path(config.out_dir)) is not None)
    source = config.out_dir if begun else _base(config)  # a run has its own copy of what it needs of the base
    config = with_architecture(config, stated, tell)
    parts, notes = split_of(config, read_pairs, "pairs")
    tokenizer = load_tokenizer(source if begun else config.data.tokenizer)
    template = _template(config, source, tokenizer)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab=tokenizer.vocab))
    data, more = _encoded(parts, config, template, tokenizer)
    for text in [*notes, *more]:
        tell(text)
    check_fits(data.train, config, what="no pair fits", shorter="answers")
    config = dataclasses.replace(config, steps=steps_of(config, len(data.train)))
    return config, _task(config, tokenizer, template, data, progress)


def _base(config: PreferenceConfig) -> str:
    """The model that a new run begins with."""
    if config.init_from is None:
        raise ConfigError(
            "no model to begin with",
            why="only a model that gives answers already can learn which ones are preferred",
            fix="name one, such as a run of `jaxgpt finetune instruct`: --from MODEL",
        )
    return config.init_from


def _template(config: PreferenceConfig, source: str, tokenizer: Tokenizer) -> Template:
    """How questions are written: as the recipe says, or as the model in `source` was tuned."""
    own = open_model(source).templates.get(DEFAULT)
    given = ChatTemplate(own, tokenizer.special_tokens) if own else None
    return template_of(tokenizer, config.template, source, given) or Plain(tokenizer)


def _encoded(
    parts: Divided[Pair], config: PreferenceConfig, template: Template, tokenizer: Tokenizer
) -> tuple[PreferenceData, list[str]]:
    """The pairs as ids, and sentences about how many there are."""
    context, notes = config.model.context, []
    found: dict[str, list[EncodedPair]] = {}
    for name, pairs in (("train", parts.train), ("val", parts.val)):
        found[name], left_out = encode_pairs(pairs, template, tokenizer, context=context)
        notes.append(f"{name}: {len(found[name]):,} pairs")
        if left_out:
            notes.append(f"{left_out:,} {name} pairs are left out: they are longer than {context} tokens")
    return PreferenceData(**found, test=parts.test), notes


def _task(
    config: PreferenceConfig,
    tokenizer: Tokenizer,
    template: Template,
    data: PreferenceData,
    progress: Progress,
) -> Task:
    mesh = mesh_of(config.mesh)
    model = finetuned_model(config, mesh)
    measure = answer_log_probabilities(model, answer=config.answer, chunk=config.loss_chunk)
    loss = preference_loss(measure, beta=config.beta, label_smoothing=config.label_smoothing)
    measurements = opened(config, tokenizer, progress)
    bare = {name: PairRows(getattr(data, name), context=config.model.context) for name in ("train", "val")}

    def open_data(own: Path, stop: Stop) -> TrainingData:
        show = stop.checked(progress)

        def begin(state: TrainState) -> None:
            between = functools.partial(show, "measuring the reference")
            found = reference.measured(
                measure, state.params, bare, mesh=mesh, sequences=config.batch, between=between
            )
            reference.keep(own, found)

        train, val = (
            rows.with_reference(functools.partial(reference.kept, own, name)) for name, rows in bare.items()
        )
        training = TrainingRows(train, sequences=config.sequences, seed=config.seed)
        events = _events(config, loss, tokenizer, val, data.question, mesh, show) if config.eval_every else []
        events += events_of(config, measurements, show, plain_params(config))
        return TrainingData(
            fingerprint=data.fingerprint,
            rows=training.rows,
            origins=training.origins,
            begin=begin,
            events=events,
        )

    return Task(
        mesh=mesh,
        model=model,
        loss=loss,
        tokenizer=tokenizer,
        chosen=chosen_of(config),
        tokens_per_step=bare["train"].tokens // len(data.train) * config.sequences,
        open_data=open_data,
        details=Details(
            answer_token_losses(model),
            functools.partial(
                shown_pairs,
                tokenizer=tokenizer,
                mean=config.answer == "mean",
                loss=lambda change_B2: pair_losses(
                    config.beta * (change_B2[:, 0] - change_B2[:, 1]), config.label_smoothing
                ),
            ),
        ),
        report=refresh_report,
        files=template.files() | questions_file(pair.dialogue for pair in data.test),
    )


def _events(
    config: PreferenceConfig,
    loss: Loss,
    tokenizer: Tokenizer,
    val: PairRows,
    question: list[int],
    mesh: Mesh,
    show: Progress,
) -> list[Event]:
    """What the loss reports of the validation pairs, and a sample answer, if there are such pairs."""
    if not len(val):
        return []
    batches = OrderedRows(val, sequences=config.batch)
    evaluate = validation_means(loss, batches, mesh, between=functools.partial(show, "evaluating"))

    def measure(state: TrainState) -> dict[str, Any]:
        return {f"val_{name}": mean for name, mean in evaluate(state.params).items()}

    event = Event("val_loss", config.eval_every, measure, also=("val_accuracy", "val_margin"))
    return [event, *sample_answers(config, tokenizer, question, show)]
