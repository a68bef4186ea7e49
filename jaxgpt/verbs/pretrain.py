"""`jaxgpt pretrain`: text or prepared tokens become a trained run directory."""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import Mesh

from jaxgpt.config import TrainConfig, save_config
from jaxgpt.display import TrainingDisplay, duration, note, progress_bar, waiting
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.ngram import ngram_losses
from jaxgpt.evaluation.report import write_report
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.inference.sampling import Sampling
from jaxgpt.language_model import LanguageModel, load
from jaxgpt.parallel import check_batch, mesh_of, place_rows
from jaxgpt.text.batches import TrainingBatches, ValidationBatches
from jaxgpt.text.manifest import MANIFEST_FILE, Manifest
from jaxgpt.text.prepare import prepare
from jaxgpt.text.shards import TokenStream, open_split
from jaxgpt.text.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from jaxgpt.training.flops import count_parameters, measured_matmul_flops, peak_flops, train_flops_per_token
from jaxgpt.training.loop import Event, Loop, train
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.metrics import METRICS_FILE, MetricsLog, Sink, TensorBoardSink
from jaxgpt.training.optim import adamw, averaged, learning_rate
from jaxgpt.training.run_directory import (
    Position,
    data_position,
    locked,
    restore_state,
    resumable_step,
    save_state,
)
from jaxgpt.training.state import (
    TrainState,
    abstract_state,
    compile_step,
    create_state,
    train_step,
    training_model,
)
from jaxgpt.training.stop import Stop, stop_on_signal
from jaxgpt.weights.checkpoint import CHECKPOINTS, Checkpoints

BASELINE_TOKENS = (
    20_000_000  # n-gram baselines are computed up to this much training text: seconds, not minutes
)
SAMPLE = Sampling(temperature=0.8, top_k=50)
EXPECTED_UTILISATION = 0.4  # of the device's peak, for the time in the plan


def run(config: TrainConfig) -> None:
    """Train as configured, or go on where the run in `out_dir` stopped."""
    if config.distributed:
        jax.distributed.initialize()
    folder = Path(config.out_dir)
    mesh = mesh_of(config.mesh)
    check_batch(config.batch, mesh)
    with locked(folder):
        config, tokenizer = _with_tokenizer(config)
        note(plan(config, mesh))
        data = _prepared(config, folder)
        position = data_position(config, Manifest.load(data))
        start = resumable_step(config, folder, position)
        log = _open_files(config, folder, tokenizer, start)
        if start == config.steps and (log.has(start, "val_loss") or not config.eval_every):
            note(f"{folder} has done its {start} steps; ask for more with --steps")
        else:
            _train(config, folder, mesh, data, tokenizer, position, start, log)
        if jax.process_index() == 0:
            note(f"{write_report(folder)}: loss curve, samples, speed")
            note(f"next: jaxgpt generate {folder} {config.sample_prompt!r}")


def plan(config: TrainConfig, mesh: Mesh) -> str:
    """What is about to happen, in a line: devices, types, mesh, parameters, tokens, steps, time."""
    device, model = mesh.devices.flat[0], config.model
    peak = peak_flops(device.device_kind, model.compute_dtype)
    if peak is None:
        peak = measured_matmul_flops(model.compute_dtype, seconds=0.2)
    tokens = config.steps * config.tokens_per_step
    seconds = tokens * train_flops_per_token(model) / (peak * mesh.size * EXPECTED_UTILISATION)
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return (
        f"plan: {mesh.size} x {device.device_kind} ({axes}), {model.compute_dtype}; "
        f"{count_parameters(model):,} parameters, vocabulary {model.vocab:,}, context {model.context:,}; "
        f"{config.steps:,} steps of {config.batch} x {config.accumulate} sequences = {tokens:,} tokens; "
        f"roughly {duration(seconds)} at {EXPECTED_UTILISATION:.0%} of the device's peak"
    )


def _with_tokenizer(config: TrainConfig) -> tuple[TrainConfig, Tokenizer]:
    """The data's tokenizer, and the config with the vocabulary it asks for."""
    given = Path(config.data.path)
    prepared = (given / MANIFEST_FILE).is_file()
    tokenizer = load_tokenizer(given / TOKENIZER_FILE if prepared else config.data.tokenizer)
    if tokenizer.vocab != config.model.vocab:
        note(f"the model's vocabulary is the data's: {tokenizer.vocab:,} instead of {config.model.vocab:,}")
    model = dataclasses.replace(config.model, vocab=tokenizer.vocab)
    return dataclasses.replace(config, model=model), tokenizer


def _prepared(config: TrainConfig, folder: Path) -> Path:
    """The folder of tokens: the one given, or one made from the text given, inside the run directory."""
    given = Path(config.data.path)
    if (given / MANIFEST_FILE).is_file():
        return given
    own = folder / "data"
    if jax.process_index() == 0:
        with waiting(f"tokenizing {given}"), progress_bar() as progress:
            prepare(
                [config.data.path],
                own,
                tokenizer=config.data.tokenizer,
                val_fraction=config.data.val_fraction,
                progress=progress,
            )
    sync_global_devices("prepared")
    return own


def _open_files(config: TrainConfig, folder: Path, tokenizer: Tokenizer, start: int) -> MetricsLog:
    """The run's settings and tokenizer, written; its log, cut back to the step to go on from."""
    if jax.process_index() == 0:
        save_config(config, folder)
        tokenizer.save(folder / TOKENIZER_FILE)
        MetricsLog(folder / METRICS_FILE).cut_back(start if start else -1)
    sync_global_devices("files")
    return MetricsLog(folder / METRICS_FILE)


def _train(
    config: TrainConfig,
    folder: Path,
    mesh: Mesh,
    data: Path,
    tokenizer: Tokenizer,
    position: Position,
    start: int,
    log: MetricsLog,
) -> None:
    model = training_model(config.model, mesh, remat=config.remat, blocks=config.blocks)
    schedule = learning_rate(config.optim, config.steps)
    optimizer = adamw(config.optim, schedule)
    loss = next_token_loss(model, chunk=config.loss_chunk)
    sequences = dict(context=config.model.context, sequences=config.sequences, vocab=config.model.vocab)
    batches = TrainingBatches(
        open_split(data, "train"), stride=position.stride, seed=config.seed, **sequences
    )

    def batch_at(step: int) -> Any:
        return place_rows(functools.partial(batches.rows, step), config.sequences, mesh)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=config.keep_checkpoints))
        if start:
            note(f"going on from step {start} of {folder}")
            with waiting(f"reading checkpoint {start}"):
                state = restore_state(folder, start, abstract_state(model, optimizer, mesh))
        else:
            state = _initial(config, create_state(model, optimizer, config.seed, mesh), mesh)
        step = functools.partial(
            train_step, loss=loss, optimizer=optimizer, schedule=schedule, accumulate=config.accumulate
        )
        with waiting("compiling the training step"):
            compiled = compile_step(step, state, mesh).lower(state, batch_at(start)).compile()
        val = open_split(data, "val") if config.eval_every else None
        if val and start == 0:
            _log_facts(log, mesh, open_split(data, "train"), val, config)
        sinks: list[Sink] = [log] if jax.process_index() == 0 else []
        if jax.process_index() == 0:
            if config.tensorboard:
                sinks.append(TensorBoardSink(folder / "tensorboard", resumed_at=start))
            sinks.append(TrainingDisplay(config.steps, start))
        for sink in sinks:
            stack.callback(sink.close)
        loop = Loop(
            step=compiled,
            batch_at=batch_at,
            steps=config.steps,
            tokens_per_step=config.tokens_per_step,
            log_every=config.log_every,
            sinks=sinks,
            stop=stop,
            save_every=config.checkpoint_every,
            events=_events(config, loss, val, tokenizer, mesh, stop),
            save=functools.partial(save_state, checkpoints, position),
        )
        train(state, loop, start=start, measured=log.has)
        with waiting("saving"):
            checkpoints.wait()


def _initial(config: TrainConfig, state: TrainState, mesh: Mesh) -> TrainState:
    """A new run's state: fresh, or with the weights of `--from`."""
    if config.init_from is None:
        return state
    given, model = load(config.init_from, mesh=mesh), config.model
    different = given.config.differences(model)
    if given.config.padded_vocab != model.padded_vocab:
        different |= {"vocab_multiple": (given.config.vocab_multiple, model.vocab_multiple)}
    if different:
        told = ", ".join(
            f"{name} is {there!r} there, {here!r} here" for name, (there, here) in different.items()
        )
        raise ConfigError(
            f"--from {config.init_from}", why=told, fix="give the run that model, as --model.NAME VALUE"
        )
    if narrow := {str(leaf.dtype) for leaf in jax.tree.leaves(given.params)} - {"float32"}:
        note(f"{config.init_from}: widened from {', '.join(sorted(narrow))} to float32")
    params = jax.tree.map(
        lambda leaf, old: jax.device_put(leaf.astype(old.dtype), old.sharding), given.params, state.params
    )
    return dataclasses.replace(state, trainable=params)


def _log_facts(
    log: MetricsLog, mesh: Mesh, train_tokens: TokenStream, val: TokenStream, config: TrainConfig
) -> None:
    """What the report compares with: the devices, and what counting words alone would reach."""
    device = mesh.devices.flat[0]
    facts: dict[str, Any] = {"devices": mesh.size, "device_kind": device.device_kind}
    if peak_flops(device.device_kind, config.model.compute_dtype) is None:
        facts["matmul_flops"] = measured_matmul_flops(config.model.compute_dtype, seconds=0.2)
    if 1 < len(train_tokens) <= BASELINE_TOKENS:
        losses = ngram_losses(
            train_tokens.read(0, len(train_tokens)), val.read(0, len(val)), config.model.vocab
        )
        note(
            f"to beat on the validation split: unigram {losses.unigram:.3f}, bigram {losses.bigram:.3f} nats a token"
        )
        facts |= {"unigram_loss": losses.unigram, "bigram_loss": losses.bigram}
    if jax.process_index() == 0:
        log.write(0, facts)


def _events(
    config: TrainConfig, loss: Any, val: TokenStream | None, tokenizer: Tokenizer, mesh: Mesh, stop: Stop
) -> list[Event]:
    """Validation loss and a sample, every `eval_every` steps."""
    if val is None:
        return []
    model = config.model
    batches = ValidationBatches(val, context=model.context, sequences=config.batch, vocab=model.vocab)
    evaluate = validation_loss(loss, batches, mesh, limit=config.eval_batches, check=stop.check)

    def measure(state: TrainState) -> dict[str, Any]:
        average = averaged(state.opt_state)
        row = {"val_loss": evaluate(state.params)}
        return row if average is None else row | {"average_val_loss": evaluate(average)}

    def write_sample(state: TrainState) -> dict[str, Any]:
        lm = LanguageModel(dataclasses.replace(model, dropout=0.0), state.params, tokenizer)
        ids = []
        for token in lm.stream(config.sample_prompt, max_new_tokens=config.sample_tokens, sampling=SAMPLE):
            stop.check()
            ids.append(token)
        return {"sample": config.sample_prompt + tokenizer.decode(ids)}

    events = [Event("val_loss", config.eval_every, measure)]
    if config.sample_tokens and jax.process_count() == 1:  # decoding is a loop on one host
        events.append(Event("sample", config.eval_every, write_sample))
    return events
