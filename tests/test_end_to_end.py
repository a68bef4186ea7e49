"""The main job through the command line: text to a model and back to text, stopped, resumed, sharded."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from command_line import exit_code

import jaxgpt
from jaxgpt.evaluation.validation import validation_loss
from jaxgpt.inference.requests import NewToken
from jaxgpt.inference.sampling import Sampling
from jaxgpt.model.gpt import define
from jaxgpt.parallel import abstract
from jaxgpt.text.batches import ValidationBatches
from jaxgpt.text.shards import open_split
from jaxgpt.text.tokenizer import RankTokenizer
from jaxgpt.training.loss import next_token_loss
from jaxgpt.weights.checkpoint import restore
from jaxgpt.weights.run import one_device

TEXT = "\n".join(
    f"{a} times {b} is {a * b}, and {b} times {a} is {a * b}." for a in range(40) for b in range(40)
)
MODEL = ["--model.context", "16", "--model.layers", "2", "--model.heads", "2", "--model.width", "16"]
SHORT = [
    *MODEL,
    "--batch",
    "8",
    "--log-every",
    "1",
    "--eval-every",
    "4",
    "--eval-batches",
    "2",
    "--sample-tokens",
    "5",
    "--optim.warmup-steps",
    "2",
    "--optim.learning-rate",
    "0.02",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tokens of a small text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tables.txt").write_text(TEXT)
    verb("prepare", folder / "tables.txt", "--out", folder / "data", "--tokenizer", "bytes")
    return folder / "data"


def verb(*args: object, code: int = 0) -> None:
    """One command line, in this process."""
    assert exit_code(*args) == code


def pretrain(out: Path, data: Path, *more: object, code: int = 0) -> None:
    mesh = () if any("--mesh" in str(arg) for arg in more) else ("--mesh.data", "8")
    verb("pretrain", "nano", "--out-dir", out, "--data.path", data, *SHORT, *mesh, *more, code=code)


SILENT = ("--sample-tokens", "0")  # compiles less, where a test does not need the sample texts


def measured(run: Path, *keys: str) -> list[tuple[Any, ...]]:
    """What the log holds of these keys, with its steps. No test asks for speed, which varies between runs."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], key, row[key]) for row in rows for key in keys if key in row]


LOSSES = ("loss", "grad_norm", "learning_rate", "val_loss", "sample")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of twelve steps, with checkpoints of the steps 10 and 12."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(out, data, "--steps", "12", "--checkpoint-every", "5")
    return out


def test_a_run_directory_holds_what_it_should_and_the_loss_falls(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "tokenizer.tiktoken", "report.md"} <= names
    losses = [value for _, _, value in measured(whole, "val_loss")]
    assert [step for step, _, _ in measured(whole, "val_loss")] == [0, 4, 8, 12]
    assert losses[-1] < losses[0] - 0.5
    assert [step for step, _, _ in measured(whole, "loss")] == list(range(1, 13))


@pytest.mark.parametrize(
    "first", [pytest.param(1, marks=pytest.mark.exhaustive), 4, pytest.param(7, marks=pytest.mark.slow)]
)
def test_resume_is_bit_identical(
    data: Path, whole: Path, tmp_path: Path, first: int, monkeypatch: Any
) -> None:
    """A run stopped by SIGTERM after any step, and started again, logs what the uninterrupted one does."""
    from jaxgpt.training.metrics import MetricsLog

    write, out = MetricsLog.write, tmp_path / "run"

    def write_and_stop(self: MetricsLog, step: int, metrics: dict) -> None:
        write(self, step, metrics)
        if step == first and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_stop)
        pretrain(out, data, "--steps", "12", code=75)
    steps = [step for step, _, _ in measured(out, "loss")]
    assert steps[-1] in (
        first,
        first + 1,
    )  # the step that was under way when the row was written is finished first
    pretrain(out, data, "--steps", "12")
    assert measured(out, *LOSSES) == measured(whole, *LOSSES)
    ours, theirs = jaxgpt.load(out), jaxgpt.load(whole)
    np.testing.assert_array_equal(ours.params["wte"]["embedding"], theirs.params["wte"]["embedding"])


def test_rows_after_the_checkpoint_are_written_anew_after_a_kill(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """As after SIGKILL: the log is ahead of the newest checkpoint and ends in half a line."""
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "12")
    with (out / "metrics.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')
    pretrain(out, data, "--steps", "12")
    assert measured(out, *LOSSES) == measured(whole, *LOSSES)


@pytest.mark.slow
def test_a_pretraining_run_that_gets_no_better_ends_early(data: Path, tmp_path: Path, capsys: Any) -> None:
    """Killed in between, it waits no longer than without: the log tells how long it has waited."""
    out = tmp_path / "run"
    waits = ("--patience", "3", "--eval-every", "1", "--steps", "9", "--checkpoint-every", "2", *SILENT)
    nothing = ("--optim.learning-rate", "1e-30", "--keep-checkpoints", "1")
    pretrain(out, data, *waits, *nothing)
    assert "ended early, after 4 steps: the best is val_loss" in capsys.readouterr().err
    once = measured(out, *LOSSES)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"1", "4"}
    shutil.rmtree(out / "checkpoints" / "4")
    pretrain(out, data, *waits, *nothing)
    assert "ended early, after 4 steps" in capsys.readouterr().err and measured(out, *LOSSES) == once
    best, last = (jaxgpt.load(name).params["h"]["attn"]["c_attn"]["bias"] for name in (f"{out}@best", out))
    assert 0 < np.max(np.abs(best - last)) < 1e-20  # a bias of 0 shows even this learning rate


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder but the locks, with its bytes and the time it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("more", "reasons"),
    [
        (("--seed", "1"), ["seed: 0 then, 1 now"]),
        (("--batch", "16"), ["batch x accumulate: 8 then, 16 now"]),
        (("--data.stride", "3"), ["data.stride: 16 then, 3 now"]),
        (("--model.width", "32"), ["model.width: 16 then, 32 now"]),
        (("--steps", "3"), ["it has done 12, but 3 are asked for"]),
        (("--optim.ema-decay", "0.9"), ["optim.ema_decay: 0.0 then, 0.9 now"]),
        (("--from", "nowhere"), ["from: None then, nowhere now"]),
        (("--seed", "2", "--from", "nowhere"), ["seed: 0 then, 2 now", "from: None then, nowhere now"]),
    ],
)
def test_a_resume_as_another_run_is_refused_and_changes_nothing(
    data: Path, whole: Path, more: tuple[str, ...], reasons: list[str], capsys: pytest.CaptureFixture
) -> None:
    before = contents(whole)
    pretrain(whole, data, "--steps", "12", *more, code=2)
    error = capsys.readouterr().err
    assert all(reason in error for reason in reasons)
    assert contents(whole) == before


@pytest.mark.slow
def test_a_learning_rate_is_changed_by_its_flag_only(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A recipe that was edited for another run says nothing about this one."""
    out, edited = shutil.copytree(whole, tmp_path / "run"), tmp_path / "edited.toml"
    table = json.loads((whole / "config.json").read_text())
    lines = [
        f"[{place}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table[place].items() if v is not None)
        for place in ("model", "optim", "data", "mesh")
    ]
    of_file = ("format", "sha256", "files")
    top = {k: v for k, v in table.items() if k not in of_file and v is not None and not isinstance(v, dict)}
    edited.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in top.items()) + "".join(lines))
    edited.write_text(edited.read_text().replace("learning_rate = 0.02", "learning_rate = 0.01"))
    before = contents(out)
    verb("pretrain", edited, "--out-dir", out, "--steps", "13", code=2)
    assert "optim.learning_rate: 0.02 then, 0.01 now" in (error := capsys.readouterr().err)
    assert "--optim.learning-rate 0.01" in error and contents(out) == before
    verb("pretrain", edited, "--out-dir", out, "--steps", "13", "--optim.learning-rate=0.01")
    changed = json.loads((out / "settings.jsonl").read_text())
    assert changed["step"] == 12 and changed["changed"]["optim.learning_rate"] == [0.02, 0.01]
    assert changed["changed"]["steps"] == [12, 13]
    assert json.loads((out / "config.json").read_text())["optim"]["learning_rate"] == 0.01


def test_a_resume_with_other_data_is_refused_and_changes_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    verb("prepare", tmp_path / "other.txt", "--out", tmp_path / "data", "--tokenizer", "bytes")
    before = contents(whole)
    for path in (
        tmp_path / "data",
        tmp_path / "other.txt",
    ):  # the text would be tokenized into the run directory
        pretrain(whole, path, "--steps", "12", "--data.tokenizer", "bytes", code=2)
        assert "it has trained on other tokens" in capsys.readouterr().err
        assert contents(whole) == before


def test_a_finished_run_has_nothing_to_do_and_is_left_as_it_is(
    data: Path, whole: Path, capsys: pytest.CaptureFixture
) -> None:
    before = contents(whole)
    others = (
        "--log-every",
        "3",
        "--sample-prompt",
        "Other",
        "--optim.weight-decay",
        "0.5",
        "--mesh.data",
        "4",
        "--mesh.fsdp",
        "2",
    )
    half_deleted = whole / "checkpoints" / "evicted" / "4" / "params"
    for more in ((), others):
        half_deleted.mkdir(parents=True)  # as SIGKILL leaves it after the last save
        (half_deleted / "d").touch()
        pretrain(whole, data, "--steps", "12", *more)
        assert "has done its 12 steps" in capsys.readouterr().err
        assert contents(whole) == before
        assert not half_deleted.parent.parent.exists()


@pytest.mark.slow
def test_a_finished_run_may_be_lengthened(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    schedule = ("--optim.schedule", "constant")
    pretrain(out, data, "--steps", "4", *schedule)
    pretrain(out, data, "--steps", "6", *schedule)
    assert [step for step, _, _ in measured(out, "loss")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((out / "settings.jsonl").read_text()) == {"step": 4, "changed": {"steps": [4, 6]}}
    assert "6 of 6" in (out / "report.md").read_text()


def test_checkpoints_that_were_deleted_do_not_take_the_log_with_them(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "checkpoints")
    before = contents(out)
    pretrain(out, data, "--steps", "12", code=66)
    assert f"{out / 'checkpoints'}" in capsys.readouterr().err and contents(out) == before


def test_a_run_that_saved_nothing_begins_again_and_keeps_its_log(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As after a kill before the first checkpoint."""
    out = shutil.copytree(whole, tmp_path / "run")
    for step in ("10", "12"):
        shutil.rmtree(out / "checkpoints" / step)
    log = (out / "metrics.jsonl").read_bytes()
    pretrain(out, data, "--steps", "12")
    assert "kept as metrics.before-1.jsonl" in capsys.readouterr().err
    assert (out / "metrics.before-1.jsonl").read_bytes() == log
    assert measured(out, *LOSSES) == measured(whole, *LOSSES)


@pytest.mark.parametrize("mesh", [("--mesh.fsdp", "4"), ("--mesh.fsdp", "2", "--mesh.tensor", "2")])
@pytest.mark.slow
def test_other_meshes_train_the_same(data: Path, whole: Path, tmp_path: Path, mesh: tuple[str, ...]) -> None:
    pretrain(tmp_path / "run", data, "--steps", "12", *SILENT, *mesh, "--model.vocab-multiple", "128")
    ours, theirs = (
        np.array([value for *_, value in measured(run, "loss")]) for run in (tmp_path / "run", whole)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
def test_accumulation_trains_as_the_large_batch_does(data: Path, tmp_path: Path) -> None:
    """Every loss, and in the end every parameter."""
    parts = ("--accumulate", "2", "--batch", "4", "--mesh.data", "4", "--mesh.tensor", "2")
    runs = []
    for name, more in (("large", ()), ("parts", parts)):
        pretrain(tmp_path / name, data, "--steps", "4", *more)
        runs.append((measured(tmp_path / name, "loss"), jaxgpt.load(tmp_path / name).params))
    (losses, params), (expected_losses, expected) = runs
    assert len(losses) == 4
    np.testing.assert_allclose([v for *_, v in losses], [v for *_, v in expected_losses], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), params, expected)


def test_generate_writes_text_to_stdout_only_and_repeats_with_its_seed(
    whole: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = []
    for more in (("--seed", "1"), ("--seed", "1"), ("--seed", "2"), ("--temperature", "0")):
        verb(
            "generate", whole, "3 times", "--max-new-tokens", "40", *more
        )  # past the context of 16: the window slides
        out, err = capsys.readouterr()
        assert out.startswith("3 times") and err == ""
        texts.append(out)
    assert texts[0] == texts[1] != texts[2]
    lm = jaxgpt.load(whole)
    assert texts[3].strip("\n") == (
        "3 times" + lm.generate(["3 times"], max_new_tokens=40, temperature=0)[0]
    ).strip("\n")


@pytest.mark.slow
def test_a_new_run_starts_from_given_weights_and_their_architecture(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No setting of the model is typed. The same command again finds the run as it is, without --from too.

    A setting of the model that is typed, or stated in a recipe file, must be that of the weights.
    """
    out, short = tmp_path / "run", [*SHORT[len(MODEL) :], "--steps", "1", "--mesh.data", "8"]
    command = ["pretrain", "small", "--out-dir", out, "--data.path", data, *short]
    verb(*command, "--from", whole)
    assert f"the architecture is that of {whole}: context 16 instead of 128" in capsys.readouterr().err
    (_, _, began), (_, _, ended) = measured(out, "val_loss")[0], measured(whole, "val_loss")[-1]
    assert began == pytest.approx(ended, rel=1e-6)
    assert jaxgpt.load(out).config.width == 16
    for again in (("--from", whole), ()):
        verb(*command, *again)
        assert "has done its 1 steps" in capsys.readouterr().err
    verb(*command, "--model.heads", "8", code=2)
    assert "model.heads: 2 then, 8 now" in capsys.readouterr().err
    (tmp_path / "own.toml").write_text(f"init_from = {str(whole)!r}\n[model]\nlayers = 3\n")
    verb("pretrain", tmp_path / "own.toml", "--out-dir", tmp_path / "other", "--data.path", data, code=2)
    assert "layers is 2 there, 3 was asked for; leave out model.layers" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_16_bit_weights_are_widened_and_said_to_be(
    data: Path, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    verb("convert", whole, tmp_path / "half", "--to", "jaxgpt", "--dtype", "bfloat16")
    pretrain(tmp_path / "run", data, "--steps", "1", *SILENT, "--from", tmp_path / "half")
    assert "half: widened from bfloat16 to float32" in capsys.readouterr().err
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(jaxgpt.load(tmp_path / "run").params)} == {"float32"}


@pytest.mark.slow
def test_two_hundred_prompts_together_get_what_each_gets_alone(whole: Path) -> None:
    lm, rng = jaxgpt.load(whole), np.random.default_rng(0)
    text = "It is a truth universally acknowledged, that 3 times 4 is 12; " * 2
    requests = []
    for number in range(200):
        start, size, new = (int(n) for n in rng.integers([0, 1, 1], [60, 30, 30]))
        sampling = Sampling(temperature=0.8 * (number % 2))
        request = lm.request(text[start : start + size], max_new_tokens=new, sampling=sampling, seed=number)
        requests.append(dataclasses.replace(request, logprobs=5))
    together: list[list[NewToken]] = [[] for _ in requests]
    for place, new in lm.engine(slots=8).run(requests):
        together[place].append(new)
    for request, found in zip(requests, together, strict=True):
        alone = [new for _, new in lm.engine(slots=1).run([request])]
        assert [(new.token, new.finish) for new in alone] == [(new.token, new.finish) for new in found]
        for one, other in zip(alone, found, strict=True):
            values = [dict(new.alternatives) for new in (one, other)]
            assert values[0].keys() == values[1].keys()
            np.testing.assert_allclose(*[list(value.values()) for value in values], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_averaged_weights_are_kept_evaluated_and_loaded(data: Path, whole: Path, tmp_path: Path) -> None:
    """The average goes from the weights that the run began with, here given ones, over every step's."""
    out, decay = tmp_path / "run", 0.5
    pretrain(
        out,
        data,
        "--steps",
        "4",
        *SILENT,
        "--optim.ema-decay",
        decay,
        "--from",
        whole,
        "--checkpoint-every",
        "1",
        "--keep-checkpoints",
        "9",
        "--eval-every",
        "1",
    )
    lm = jaxgpt.load(whole)
    target = abstract(lm.params, one_device())
    average = jax.tree.map(np.asarray, lm.params)
    for step in (1, 2, 3, 4):
        params = restore(out / "checkpoints", step, "params", target)
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * np.asarray(new), average, params)
    loaded = jaxgpt.load(out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), loaded.params, average)
    assert not np.allclose(params["wte"]["embedding"], average["wte"]["embedding"], rtol=0, atol=1e-4)
    losses = {key: [value for *_, value in measured(out, key)] for key in ("val_loss", "average_val_loss")}
    assert losses["average_val_loss"][0] == losses["val_loss"][0]
    batches = ValidationBatches(open_split(data, "val"), context=16, sequences=8, vocab=257)
    evaluate = validation_loss(next_token_loss(define(lm.config)), batches, one_device(), limit=2)
    assert losses["average_val_loss"][-1] == pytest.approx(evaluate(average), rel=1e-5)


def test_weights_of_another_tokenizer_are_no_start(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Though it has as many ids."""
    other = RankTokenizer({bytes([255 - byte]): byte for byte in range(256)})
    model = shutil.copytree(whole, tmp_path / "model")
    other.save(model / "tokenizer.tiktoken")
    pretrain(tmp_path / "run", data, "--steps", "1", "--from", model, code=65)
    assert f"a file of the run has changed ({model / 'tokenizer.tiktoken'})" in capsys.readouterr().err
    config = json.loads((model / "config.json").read_text())
    del config["files"], config["sha256"]
    (model / "config.json").write_text(json.dumps(config))
    pretrain(tmp_path / "run", data, "--steps", "1", "--from", model, code=2)
    error = capsys.readouterr().err
    assert f"its tokenizer is {other.name}" in error and "the data's is bytes" in error
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_model_with_more_rows_than_ids_is_continued_and_evaluated(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As nanoGPT stores GPT-2: 50,304 rows, 50,257 of them tokens. Here the others hold random numbers."""
    lm, rng = jaxgpt.load(whole), np.random.default_rng(0)
    rows = np.array(lm.params["wte"]["embedding"])
    rows[257:300] = rng.normal(size=(43, 16))
    wide = dataclasses.replace(
        lm, config=dataclasses.replace(lm.config, vocab=300), params=lm.params | {"wte": {"embedding": rows}}
    )
    wide.save(tmp_path / "wide", "jaxgpt")
    pretrain(tmp_path / "run", data, "--steps", "1", *SILENT, "--from", tmp_path / "wide")
    (_, _, began), (_, _, ended) = measured(tmp_path / "run", "val_loss")[0], measured(whole, "val_loss")[-1]
    assert began == pytest.approx(ended, rel=1e-6)
    figures = []
    for model in (whole, tmp_path / "wide"):
        verb("evaluate", model, "--data", data, "--json", tmp_path / "figures.json")
        figures.append(json.loads((tmp_path / "figures.json").read_text())["val_loss"])
    assert figures[1] == pytest.approx(figures[0], rel=1e-6)


def test_divergence_ends_with_76_and_keeps_what_was_saved(
    data: Path, whole: Path, tmp_path: Path, capsys: Any
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    huge = ("--optim.learning-rate", "1e30", "--optim.clip-norm", "0")
    pretrain(out, data, "--steps", "20", *SILENT, *huge, code=76)
    assert "diverged at step" in capsys.readouterr().err
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"10", "12"}
    assert jaxgpt.load(out).config.layers == jaxgpt.load(f"{out}@best").config.layers == 2


def test_divergence_that_the_validation_loss_sees_first_ends_with_76_too(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The first step's loss is finite; the parameters that the step leaves are far too large."""
    out = tmp_path / "run"
    huge = ("--optim.learning-rate", "1e30", "--optim.clip-norm", "0", "--optim.warmup-steps", "0")
    pretrain(
        out, data, "--steps", "4", "--eval-every", "1", "--checkpoint-every", "1", *SILENT, *huge, code=76
    )
    assert "diverged at step 1: val_loss is nan" in capsys.readouterr().err
    assert [step for step, *_ in measured(out, "val_loss")] == [0]
    assert list((out / "checkpoints").iterdir()) == []


def flip_a_bit(checkpoint: Path) -> None:
    path = max((checkpoint / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_the_table(checkpoint: Path) -> None:
    path = checkpoint / "meta" / "metadata"
    path.write_text(path.read_text()[:-9])


def delete_an_item(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "rest")


def forget_the_last_evaluation(run: Path) -> None:
    """So that the run has something left to do at its last step."""
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if not ('"step": 12' in line and "val_loss" in line)))


DAMAGES = [
    (flip_a_bit, "params: other contents than were saved in"),
    pytest.param(cut_the_table, "meta: ", marks=pytest.mark.slow),
    pytest.param(delete_an_item, "rest: ", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture, damage: Any, said: str
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    damage(out / "checkpoints" / "12")
    forget_the_last_evaluation(out)
    pretrain(out, data, "--steps", "12")
    told = capsys.readouterr().err
    assert f"warning: checkpoint is damaged ({out / 'checkpoints' / '12'}): {said}" in told
    assert "trying the one before it, of step 10" in told and "is kept as" in told
    assert measured(out, *LOSSES) == measured(whole, *LOSSES)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"10", "12", "12.damaged-1"}
    assert jaxgpt.load(out).config.layers == 2


def test_where_every_checkpoint_is_damaged_nothing_is_changed(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    for step in ("10", "12"):
        cut_the_table(out / "checkpoints" / step)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    pretrain(out, data, "--steps", "14", code=65)
    assert f"error: checkpoint is damaged ({out / 'checkpoints' / '12'}): meta: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_update_that_overflows_is_never_saved(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its loss and its gradient are finite, and nothing is measured after it."""
    out = shutil.copytree(whole, tmp_path / "run")
    huge = ("--optim.learning-rate", "3.4e38", "--optim.schedule", "constant", "--optim.weight-decay", "1e3")
    pretrain(
        out, data, "--steps", "13", "--eval-every", "0", *SILENT, *huge, "--optim.clip-norm", "0", code=76
    )
    assert "diverged at step 13: not finite any more: params/" in capsys.readouterr().err
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"10", "12"}
