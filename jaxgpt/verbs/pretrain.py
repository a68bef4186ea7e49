"""`jaxgpt pretrain`: text or prepared tokens become a trained run directory."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from jax.sharding import Mesh

from jaxgpt.config import TrainConfig, read_config, save_config
from jaxgpt.errors import BusyError, ConfigError, StorageError
from jaxgpt.evaluation.ngram import ngram_losses
from jaxgpt.evaluation.report import write_report
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.inference.sampling import Sampling
from jaxgpt.language_model import CHECKPOINTS, LanguageModel, load
from jaxgpt.model.gpt import define
from jaxgpt.parallel import check_batch, mesh_of, place_rows, shardings
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
from jaxgpt.training.state import TrainState, abstract_state, compile_step, create_state, train_step
from jaxgpt.training.stop import Stop, stop_on_signal
from jaxgpt.verbs.display import TrainingDisplay, duration, note, progress_bar, waiting
from jaxgpt.weights.checkpoint import Checkpoints, latest_step, read_meta, restore

BASELINE_TOKENS = 20_000_000  # n-gram baselines are computed up to this much training text: seconds, not minutes
SAMPLE = Sampling(temperature=0.8, top_k=50)
EXPECTED_UTILISATION = 0.4  # of the device's peak, for the time in the plan


def run(config: TrainConfig) -> None:
    """Train as configured, or go on where the run in `out_dir` stopped."""
    if config.distributed:
        jax.distributed.initialize()
    folder = Path(config.out_dir)
    mesh = mesh_of(config.mesh)
    check_batch(config.batch, mesh)
    with _locked(folder):
        config, tokenizer = _with_tokenizer(config)
        note(plan(config, mesh))
        data = _prepared(config, folder)
        position = _position(config, Manifest.load(data))
        start = _resumable_step(config, folder, position)
        _write_run_files(config, folder, tokenizer)
        _train(config, folder, mesh, data, tokenizer, position, start)
    if jax.process_index() == 0:
        report = write_report(folder)
        note(f"{report}: loss curve, samples, speed\nnext: jaxgpt generate {folder} {config.sample_prompt!r}")


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


@dataclass(frozen=True, kw_only=True)
class Position:
    """What decides the order of the data; a run goes on only where all of it is as it was."""

    fingerprint: str
    seed: int
    sequences: int
    context: int
    stride: int


def _position(config: TrainConfig, manifest: Manifest) -> Position:
    return Position(
        fingerprint=manifest.fingerprint,
        seed=config.seed,
        sequences=config.sequences,
        context=config.model.context,
        stride=config.data.stride or config.model.context,
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The run directory, for this run alone (one process of it holds the lock)."""
    if jax.process_index() > 0:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise BusyError(
            "run directory is in use", path=folder, why="another process trains in it", fix="wait or use another"
        ) from None
    except (FileExistsError, PermissionError) as error:
        raise StorageError(
            "no run directory", path=folder, why=str(error.strerror), fix="name another --out-dir"
        ) from None


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
                [config.data.path], own, tokenizer=config.data.tokenizer, val_fraction=config.data.val_fraction,
                progress=progress,
            )  # fmt: skip
    _barrier("prepared")
    return own


def _resumable_step(config: TrainConfig, folder: Path, position: Position) -> int:
    """The step to go on from; 0 for a new run. Raises ConfigError when what is there is another run."""
    step = latest_step(folder / CHECKPOINTS) if (folder / CHECKPOINTS).is_dir() else None
    if step is None:
        return 0
    before, model = read_meta(folder / CHECKPOINTS, step)["position"], read_config(folder).model
    now = dataclasses.asdict(position)
    changed = [f"{name}: {before.get(name)} then, {now[name]} now" for name in now if before.get(name) != now[name]]
    runs_alike = dataclasses.replace(config.model, dropout=model.dropout, compute_dtype=model.compute_dtype)
    for field in dataclasses.fields(model):
        was, wanted = getattr(model, field.name), getattr(runs_alike, field.name)
        if was != wanted:
            changed.append(f"model.{field.name}: {was} then, {wanted} now")
    if changed:
        raise ConfigError(
            "another run is here",
            path=folder,
            why=", ".join(changed),
            fix="name another --out-dir or the settings of then",
        )
    if step > config.steps:
        raise ConfigError(
            f"steps = {config.steps}",
            path=folder,
            why=f"the run has done {step}",
            fix="ask for more or name another --out-dir",
        )
    note(f"going on from step {step} of {folder}")
    return step


def _write_run_files(config: TrainConfig, folder: Path, tokenizer: Tokenizer) -> None:
    if jax.process_index() == 0:
        save_config(config, folder)
        tokenizer.save(folder / TOKENIZER_FILE)


def _train(
    config: TrainConfig, folder: Path, mesh: Mesh, data: Path, tokenizer: Tokenizer, position: Position, start: int
) -> None:
    model = define(config.model, remat=config.remat)
    schedule = learning_rate(config.optim, config.steps)
    optimizer = adamw(config.optim, schedule)
    loss = next_token_loss(model, chunk=config.loss_chunk)
    sequences = dict(context=config.model.context, sequences=config.sequences, vocab=config.model.vocab)
    batches = TrainingBatches(open_split(data, "train"), stride=position.stride, seed=config.seed, **sequences)

    def batch_at(step: int) -> Any:
        return place_rows(functools.partial(batches.rows, step), config.sequences, mesh)

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        checkpoints = stack.enter_context(Checkpoints(folder / CHECKPOINTS, keep=config.keep_checkpoints))
        if start:
            with waiting(f"reading checkpoint {start}"):
                state = _restored(folder, start, abstract_state(model, optimizer, mesh), config)
        else:
            state = _initial(config, create_state(model, optimizer, config.seed, mesh), mesh)
        step = functools.partial(
            train_step, loss=loss, optimizer=optimizer, schedule=schedule, accumulate=config.accumulate,
            unrolled=_unrolled(config),
        )  # fmt: skip
        with waiting("compiling the training step"):
            compiled = compile_step(step, state, mesh).lower(state, batch_at(start)).compile()
        log = _open_log(folder, start)
        val = open_split(data, "val") if config.eval_every else None
        if val and not log.has(0, "unigram_loss") and start == 0:
            _log_facts(log, mesh, open_split(data, "train"), val, config)
        sinks: list[Sink] = [log] if jax.process_index() == 0 else []
        if jax.process_index() == 0:
            if config.tensorboard:
                sinks.append(TensorBoardSink(folder / "tensorboard", resumed_at=start))
            sinks.append(TrainingDisplay(config.steps, start))
        for sink in sinks:
            stack.callback(sink.close)
        loop = Loop(
            step=compiled, batch_at=batch_at, steps=config.steps, tokens_per_step=config.tokens_per_step,
            log_every=config.log_every, sinks=sinks, stop=stop, save_every=config.checkpoint_every,
            events=_events(config, loss, val, tokenizer, mesh, stop),
            save=functools.partial(_save, checkpoints, position),
        )  # fmt: skip
        train(state, loop, start=start, measured=log.has)
        with waiting("saving"):
            checkpoints.wait()


def _unrolled(config: TrainConfig) -> bool:
    """Whether blocks run one after another; `auto` is what measured best on this backend."""
    return config.blocks == "unrolled" or (config.blocks == "auto" and jax.default_backend() == "cpu")


def _items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint: what inference needs by itself, the rest besides."""
    rest = {"step": state.step, "key": state.key, "opt_state": state.opt_state}
    average = averaged(state.opt_state)
    return {"params": state.params, "rest": rest} | ({} if average is None else {"average": average})


def _save(checkpoints: Checkpoints, position: Position, state: TrainState, step: int) -> None:
    checkpoints.save(step, _items(state), {"position": dataclasses.asdict(position)})


def _restored(folder: Path, step: int, target: TrainState, config: TrainConfig) -> TrainState:
    items = _items(target)
    params = restore(folder / CHECKPOINTS, step, "params", items["params"])
    rest = restore(folder / CHECKPOINTS, step, "rest", items["rest"])
    return TrainState(params=params, **rest)


def _initial(config: TrainConfig, state: TrainState, mesh: Mesh) -> TrainState:
    """A new run's state: fresh, or with the weights of `--from`."""
    if config.init_from is None:
        return state
    given = load(config.init_from)
    if jax.tree.map(np.shape, given.params) != jax.tree.map(np.shape, state.params):
        raise ConfigError(
            f"--from {config.init_from}", why=f"its model is {given.config}", fix="give --model the same shape"
        )
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), given.params)
    return dataclasses.replace(state, params=jax.device_put(params, shardings(params, mesh)))


def _open_log(folder: Path, start: int) -> MetricsLog:
    log = MetricsLog(folder / METRICS_FILE)
    log.cut_back(start if start else -1)
    return log


def _log_facts(log: MetricsLog, mesh: Mesh, train_tokens: TokenStream, val: TokenStream, config: TrainConfig) -> None:
    """What the report compares with: the devices, and what counting words alone would reach."""
    device = mesh.devices.flat[0]
    facts: dict[str, Any] = {"devices": mesh.size, "device_kind": device.device_kind}
    if peak_flops(device.device_kind, config.model.compute_dtype) is None:
        facts["matmul_flops"] = measured_matmul_flops(config.model.compute_dtype, seconds=0.2)
    if 1 < len(train_tokens) <= BASELINE_TOKENS:
        losses = ngram_losses(train_tokens.read(0, len(train_tokens)), val.read(0, len(val)), config.model.vocab)
        note(f"to beat on the validation split: unigram {losses.unigram:.3f}, bigram {losses.bigram:.3f} nats a token")
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


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(name)
