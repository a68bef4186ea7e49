"""Pretraining as a task: the tokens of a text, the next-token loss, validation losses and samples."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxgpt import hosts
from jaxgpt.config import TrainConfig
from jaxgpt.display import Progress, no_progress, waiting
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.during import events_of, opened
from jaxgpt.evaluation.ngram import ngram_losses
from jaxgpt.evaluation.report import refresh_report
from jaxgpt.evaluation.sample import sampler
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.inference.defaults import TEMPERATURE, TOP_K
from jaxgpt.inference.sampling import Sampling
from jaxgpt.parallel import mesh_of
from jaxgpt.text.batches import TrainingBatches, ValidationBatches
from jaxgpt.text.manifest import MANIFEST_FILE, Manifest
from jaxgpt.text.prepare import OtherDataError, prepare
from jaxgpt.text.prepared import check_prepared
from jaxgpt.text.shards import TokenStream, open_split
from jaxgpt.text.tokenizer import Tokenizer
from jaxgpt.text.tokenizer_files import load_preparing
from jaxgpt.training.initial import companions_of, with_architecture
from jaxgpt.training.loop import Event
from jaxgpt.training.loss import Loss, next_token_loss
from jaxgpt.training.optim import averaged
from jaxgpt.training.state import TrainState, training_model
from jaxgpt.training.stop import Stop
from jaxgpt.training.task import Task, TrainingData, details_of

# For more training text than this, n-gram losses are not computed, because that takes too long.
BASELINE_TOKENS = 20_000_000
SAMPLE = Sampling(temperature=TEMPERATURE, top_k=TOP_K)

Tell = Callable[[str], None]


def pretraining(
    config: TrainConfig, *, tell: Tell, stated: Collection[str] = (), progress: Progress = no_progress
) -> tuple[TrainConfig, Task]:
    """The recipe, with the vocabulary of its data's tokenizer, and the task that it describes.

    Where the run begins with a given model, the recipe gets its architecture; `stated` are the settings that
    a person gave by name, which must not differ from it. `progress` shows how far the text is tokenized and
    how far an evaluation is.

    Raises MissingError where there is no tokenizer, ConfigError where a stated setting differs or no text is
    left for the evaluations, and what `evaluation.during.opened` raises.
    """
    given = Path(config.data.path)
    if config.eval_every and not config.data.val_fraction and not _is_prepared(given):
        raise _nothing_to_evaluate_on("--data.val-fraction 0", config, "or a larger fraction")
    config = with_architecture(config, stated, tell)
    tokenizer = load_preparing(given if _is_prepared(given) else config.data.tokenizer)
    if tokenizer.vocab != config.model.vocab:
        tell(f"the model's vocabulary is the data's: {tokenizer.vocab:,} instead of {config.model.vocab:,}")
    recipe = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab=tokenizer.vocab))
    mesh = mesh_of(recipe.mesh)
    model = training_model(recipe.model, mesh, keeps=recipe.backward_keeps, blocks=recipe.blocks)
    loss = next_token_loss(model, chunk=recipe.loss_chunk)
    measurements = opened(recipe, tokenizer, progress)

    def open_data(own: Path, stop: Stop) -> TrainingData:
        show = stop.checked(progress)
        folder = given if _is_prepared(given) else _prepared(recipe, own, tell, show)
        hosts.decide(lambda: check_prepared(folder, tokenizer, progress=show))
        train = open_split(folder, "train")
        val = open_split(folder, "val") if recipe.eval_every else None
        if val is not None and len(val) < 2:
            raise _nothing_to_evaluate_on(
                f"a validation split of {len(val)} tokens", recipe, "or data with more of them", given
            )
        batches = TrainingBatches(
            train,
            context=recipe.model.context,
            stride=recipe.data.stride or recipe.model.context,
            sequences=recipe.sequences,
            seed=recipe.seed,
            vocab=recipe.model.vocab,
        )
        return TrainingData(
            fingerprint=Manifest.load(folder).fingerprint,
            rows=batches.rows,
            origins=batches.origins,
            events=[
                *([] if val is None else _events(recipe, loss, val, tokenizer, mesh, show)),
                *events_of(recipe, measurements, show),
            ],
            facts=lambda: {} if val is None else _baselines(train, val, recipe.model.vocab, tell),
        )

    task = Task(
        mesh=mesh,
        model=model,
        loss=loss,
        tokenizer=tokenizer,
        files=companions_of(recipe),
        tokens_per_step=recipe.tokens_per_step,
        open_data=open_data,
        details=details_of(model, tokenizer),
        report=refresh_report,
    )
    return recipe, task


def _nothing_to_evaluate_on(
    what: str, config: TrainConfig, otherwise: str, path: Path | None = None
) -> ConfigError:
    return ConfigError(
        what,
        path=path,
        why=f"no text is left to evaluate on, which is to be done every {config.eval_every} steps",
        fix=f"give --eval-every 0 to train without evaluations, {otherwise}",
    )


def _is_prepared(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def _prepared(recipe: TrainConfig, own: Path, tell: Tell, show: Progress) -> Path:
    """Write the tokens of the recipe's text into the folder `own`, and return it."""

    def write() -> None:
        with waiting(f"tokenizing {recipe.data.path}", tell):
            prepare(
                [recipe.data.path],
                own,
                tokenizer=recipe.data.tokenizer,
                val_fraction=recipe.data.val_fraction,
                progress=show,
                tell=tell,
            )

    try:
        hosts.decide(write)
    except OtherDataError as error:
        raise ConfigError(
            "another run is here",
            path=own.parent,
            why=f"the text or its settings changed since it began (data.path: {recipe.data.path})",
            fix="give the run the text that it began with, or name another --out-dir",
        ) from error
    return own


def _baselines(train: TokenStream, val: TokenStream, vocab: int, tell: Tell) -> dict[str, Any]:
    """The losses that models which only count tokens reach on the validation split."""
    if not 1 < len(train) <= BASELINE_TOKENS:
        return {}
    losses = ngram_losses(train.read(0, len(train)), val.read(0, len(val)), vocab)
    reached = f"unigram {losses.unigram:.3f}, bigram {losses.bigram:.3f} nats a token"
    tell(f"to beat on the validation split: {reached}")
    return {"unigram_loss": losses.unigram, "bigram_loss": losses.bigram}


def _events(
    recipe: TrainConfig, loss: Loss, val: TokenStream, tokenizer: Tokenizer, mesh: Mesh, show: Progress
) -> list[Event]:
    """The events of pretraining: a validation loss and a sample every `eval_every` steps."""
    model = recipe.model
    batches = ValidationBatches(val, context=model.context, sequences=recipe.batch, vocab=model.vocab)
    between = functools.partial(show, "evaluating")
    evaluate = validation_loss(loss, batches, mesh, limit=recipe.eval_batches, between=between)

    def measure(state: TrainState) -> dict[str, Any]:
        average = averaged(state.opt_state)
        row = {"val_loss": evaluate(state.params)}
        return row if average is None else row | {"average_val_loss": evaluate(average)}

    write_sample = sampler(
        model,
        tokenizer,
        tokenizer.prompt_ids(recipe.sample_prompt),
        shown=recipe.sample_prompt,
        tokens=recipe.sample_tokens,
        sampling=SAMPLE,
        show=show,
    )
    events = [Event("val_loss", recipe.eval_every, measure, also=("average_val_loss",))]
    if recipe.sample_tokens and jax.process_count() == 1:  # the engine runs on one host
        events.append(Event("sample", recipe.eval_every, write_sample))
    return events
