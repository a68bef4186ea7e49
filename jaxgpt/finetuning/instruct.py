"""Instruction tuning as a task: dialogues in a template, the loss of their answers, and a sample answer."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxgpt.config import InstructConfig
from jaxgpt.display import Progress, no_progress
from jaxgpt.evaluation.during import events_of, opened
from jaxgpt.evaluation.report import refresh_report
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.finetuning.chosen import chosen_of, steps_of
from jaxgpt.finetuning.dialogue_batches import (
    DialogueRows,
    Encoded,
    OrderedRows,
    TrainingRows,
    encode,
    spoken,
)
from jaxgpt.finetuning.dialogue_task import check_fits, questions_file, sample_answers, split_of
from jaxgpt.finetuning.lora import finetuned_model, plain_params
from jaxgpt.inference.templates import Plain, Template, template_of
from jaxgpt.parallel import mesh_of
from jaxgpt.text.dialogues import Dialogue, read_dialogues
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training.initial import with_architecture
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss, next_token_loss
from jaxgpt.training.state import TrainState
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Task, TrainingData, details_of

Tell = Callable[[str], None]


class DialogueData(NamedTuple):
    """The dialogues of a run."""

    train: DialogueRows
    val: DialogueRows
    question: list[int]
    """The ids of the first validation question that fits the context. The samples answer it."""
    test: Sequence[Dialogue]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides the examples."""
        return hashlib.sha256((self.train.fingerprint + self.val.fingerprint).encode()).hexdigest()


def instruction_tuning(
    config: InstructConfig, *, tell: Tell, stated: Collection[str] = (), progress: Progress = no_progress
) -> tuple[InstructConfig, Task]:
    """The recipe, with the steps of its epochs, and the task that it describes.

    The model that the run begins with decides the architecture; `stated` are the settings that a person gave
    by name, which must not differ from it. Raises what `read_dialogues`, `divided` and
    `evaluation.during.opened` raise, and DataError where no training answer fits the context.
    """
    config = with_architecture(config, stated, tell)
    parts, notes = split_of(config, read_dialogues, "dialogues")
    tokenizer = load_tokenizer(config.data.tokenizer)
    template = template_of(tokenizer, config.template, config.init_from or "", None) or Plain(tokenizer)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab=tokenizer.vocab))
    train, val = (_encoded(each, config, template, tokenizer) for each in (parts.train, parts.val))
    for text in [*notes, *_counts(train, "train"), *_counts(val, "val")]:
        tell(text)
    context, question = config.model.context, functools.partial(_question, template=template)
    check_fits(train.examples, config, what="no answer begins within", shorter="dialogues")
    data = DialogueData(
        train=DialogueRows(train.examples, context=context, pack=config.pack, seed=config.seed),
        val=DialogueRows(val.examples, context=context, pack=False),
        question=next((ids for ids in map(question, parts.val) if len(ids) < context), []),
        test=parts.test,
    )
    if config.pack:
        count = f"{len(train.examples):,} dialogues"
        tell(f"packed: {len(data.train):,} rows of {context} tokens hold the {count}")
    config = dataclasses.replace(config, steps=steps_of(config, len(data.train)))
    return config, _task(config, tokenizer, template, data, progress)


def _counts(part: Encoded, name: str) -> list[str]:
    """Sentences about how many dialogues there are to train on, or to measure."""
    told = [f"{name}: {len(part.examples):,} dialogues"]
    if part.cut:
        told.append(f"{part.cut:,} {name} dialogues are longer than the context, and their ends are left out")
    if part.left_out:
        told.append(f"{part.left_out:,} {name} dialogues are left out: no answer fits the context")
    return told


def _encoded(
    dialogues: Sequence[Dialogue], config: InstructConfig, template: Template, tokenizer: Tokenizer
) -> Encoded:
    return encode(
        dialogues, template, tokenizer, context=config.model.context, answers_only=config.answers_only
    )


def _task(
    config: InstructConfig, tokenizer: Tokenizer, template: Template, data: DialogueData, progress: Progress
) -> Task:
    mesh = mesh_of(config.mesh)
    model = finetuned_model(config, mesh)
    loss = next_token_loss(model, chunk=config.loss_chunk)
    training = TrainingRows(data.train, sequences=config.sequences, seed=config.seed)
    measurements = opened(config, tokenizer, progress)

    def open_data(_: Path, stop: Stop) -> TrainingData:
        show = stop.checked(progress)
        events = _events(config, loss, tokenizer, data, mesh, show) if config.eval_every else []
        events += events_of(config, measurements, show, plain_params(config))
        return TrainingData(
            fingerprint=data.fingerprint, rows=training.rows, origins=training.origins, events=events
        )

    return Task(
        mesh=mesh,
        model=model,
        loss=loss,
        tokenizer=tokenizer,
        chosen=chosen_of(config),
        tokens_per_step=data.train.tokens // len(data.train) * config.sequences,
        open_data=open_data,
        details=details_of(model, tokenizer),
        report=refresh_report,
        files=template.files() | questions_file(data.test),
    )


def _events(
    config: InstructConfig, loss: Loss, tokenizer: Tokenizer, data: DialogueData, mesh: Mesh, show: Progress
) -> list[Event]:
    """A validation loss and a sample answer every `eval_every` steps, if there are validation dialogues."""
    if not len(data.val):
        return []
    batches = OrderedRows(data.val, sequences=config.batch)
    evaluate = validation_loss(loss, batches, mesh, between=functools.partial(show, "evaluating"))

    def measure(state: TrainState) -> dict[str, Any]:
        return {"val_loss": evaluate(state.params)}

    return [
        Event("val_loss", config.eval_every, measure),
        *sample_answers(config, tokenizer, data.question, show),
    ]


def _question(dialogue: Dialogue, template: Template) -> list[int]:
    """The ids of what is said up to the first answer."""
    asked = itertools.takewhile(lambda message: message.role != "assistant", dialogue)
    return template.ids(spoken([*asked], template))
