"""A step that is trained again comes out as the run's log has it, to the bit, and shows its texts."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import exit_code
from seen_html import Seen

import jaxgpt
from jaxgpt.config import TrainConfig, read_config, with_settings
from jaxgpt.errors import ConfigError, DivergedError
from jaxgpt.evaluation.document import Paragraph, Tokens
from jaxgpt.evaluation.page import page
from jaxgpt.evaluation.replayed import gradient_table, parts_of
from jaxgpt.runs import Run, task_for
from jaxgpt.text.batches import TrainingBatches
from jaxgpt.text.shards import open_split
from jaxgpt.text.shown import Shown
from jaxgpt.training.replay import IN_LOG, Replayed, replay, settings_at

SETTINGS: dict[str, Any] = {
    "model.context": 16,
    "model.layers": 1,
    "model.heads": 1,
    "model.width": 8,
    "model.dropout": 0.1,
    "optim.warmup_steps": 2,
    "batch": 8,
    "accumulate": 2,
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 3,
    "keep_checkpoints": 9,
}


def train(out: Path, tables_text: Path, steps: int, **more: Any) -> Run:
    settings = SETTINGS | {"data.path": str(tables_text), "out_dir": str(out), "steps": steps} | more
    return jaxgpt.train("nano", settings, progress=False)


@pytest.fixture(scope="module")
def run(tables_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that went on to eight with another learning rate and another schedule.

    It has checkpoints of the steps 3, 4, 6 and 8.
    """
    out = tmp_path_factory.mktemp("runs") / "run"
    train(out, tables_text, 4)
    train(out, tables_text, 8, **{"optim.learning_rate": 0.01, "accumulate": 2})
    return out


def again(folder: Path, number: int, told: list[str] | None = None) -> Replayed:
    def task_of(recipe: Any) -> Any:
        return task_for(recipe, tell=lambda _: None)[1]

    return replay(folder, number, task_of, ([] if told is None else told).append)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def second(run: Path) -> Replayed:
    """The second step, trained again."""
    return again(run, 2)


def rows_of(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in Run(folder).metrics if "loss" in row}


def test_a_step_comes_out_as_the_log_has_it_to_the_bit(run: Path, second: Replayed) -> None:
    assert second.metrics == second.logged == {name: rows_of(run)[2][name] for name in IN_LOG}
    assert (second.begun_at, second.equal, second.different) == (0, [1, 2], [])
    squares = [np.sum(np.square(norm)) for norm in second.norms.values()]
    assert np.sqrt(sum(squares)) == pytest.approx(second.metrics["grad_norm"], rel=1e-5)
    losses = [loss for shown in second.texts for _, loss in shown.tokens if loss is not None]
    assert len(losses) == 16 * 16 and np.mean(losses) == pytest.approx(second.metrics["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "begun_at", "lost", "other"),
    [pytest.param(6, 4, (), 5, marks=pytest.mark.exhaustive), (5, 0, (3, 4), 3)],
)
def test_steps_are_trained_again_from_the_nearest_checkpoint_with_the_settings_of_their_time(
    run: Path, tmp_path: Path, number: int, begun_at: int, lost: tuple[int, ...], other: int
) -> None:
    """Nothing is written. In a log that was changed at one step by the least there is, that is noticed."""
    folder, told = shutil.copytree(run, tmp_path / "moved"), list[str]()
    for step in lost:
        shutil.rmtree(folder / "checkpoints" / str(step))
    log = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if row["step"] == other and "grad_norm" in row:
            row["grad_norm"] = float(np.nextafter(row["grad_norm"], 9))
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = contents(folder)
    found = again(folder, number, told)
    assert contents(folder) == before
    assert found.metrics == {name: rows_of(run)[number][name] for name in IN_LOG}
    assert found.begun_at == begun_at and found.different == [other]
    assert found.equal == [step for step in range(begun_at + 1, number + 1) if step != other]
    assert told[0] == f"beginning at {f'checkpoint {begun_at}' if begun_at else 'the start of the run'}"
    said = [part.text for part in parts_of(found) if isinstance(part, Paragraph)]
    assert said[1].startswith(f"Other than in the log are step {other}: ")


def test_the_settings_of_a_step_are_those_of_its_time(run: Path, tmp_path: Path) -> None:
    """Where a run went back to an earlier checkpoint, the steps after it have the settings given then."""
    now = read_config(run)
    assert isinstance(now, TrainConfig) and now.optim.learning_rate == 0.01
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    changes = [(4, 0.1, 0.2), (8, 0.2, 0.3), (6, 0.3, 0.01)]
    lines = [
        json.dumps({"step": step, "changed": {"optim.learning_rate": [before, after]}})
        for step, before, after in changes
    ]
    (tmp_path / "settings.jsonl").write_text("\n".join(lines) + "\n")
    rates = [settings_at(tmp_path, step).optim.learning_rate for step in (1, 4, 5, 6, 7, 8, 9)]
    assert rates == [0.1, 0.1, 0.2, 0.2, 0.01, 0.01, 0.01]


def test_the_texts_are_those_that_the_step_has_read(run: Path, second: Replayed) -> None:
    stream = open_split(run / "data", "train")
    whole = bytes(stream.read(0, len(stream)).astype(np.uint8).tolist()).decode()
    read = [[ids, *targets] for ids, targets in _windows(run, 2)]
    assert [shown.title for shown in second.texts] == [f"row {row}" for row in range(1, 17)]
    for shown, ids in zip(second.texts, read, strict=True):
        said = "".join(text for text, _ in shown.tokens)
        assert said == bytes(ids).decode() and len(said) == 17 and said in whole


def _windows(run: Path, step: int) -> list[tuple[int, list[int]]]:
    """The first input and the targets of each row of a step's batch."""
    batches = TrainingBatches(
        open_split(run / "data", "train"), context=16, stride=16, sequences=16, seed=0, vocab=257
    )
    batch = batches.rows(step - 1, 0, 16)
    return [
        (inputs[0], targets.tolist())
        for inputs, targets in zip(batch.inputs_BT, batch.targets_BT, strict=True)
    ]


def test_the_command_shows_the_step_and_writes_the_files(
    run: Path, second: Replayed, tmp_path: Path, capsys: Any
) -> None:
    files = tmp_path / "step.html", tmp_path / "step.json"
    assert exit_code("replay", run, "--step", 2, "--texts", 3, "--html", files[0], "--json", files[1]) == 0
    said = capsys.readouterr()
    assert "beginning at the start of the run" in said.err and "training 1 steps again" in said.err
    assert f"{second.logged['loss']:.9g}" in said.out
    assert "To the bit as in the log are steps 1, 2." in said.out
    table = json.loads(files[1].read_text())
    assert table["loss"] == second.logged["loss"] == table["log"]["loss"]
    assert table["texts"][4]["tokens"] == [list(token) for token in second.texts[4].tokens]
    highest = sorted(second.texts, key=lambda shown: -shown.loss)
    assert re.findall(r"^row \d+: ", said.out, re.M) == [f"{shown.title}: " for shown in highest[:3]]
    content = files[0].read_text()
    assert content.count('class="token"') == 256 and f'title="loss {highest[0].tokens[1][1]:.4f}, ' in content


@pytest.mark.parametrize(
    ("step", "code", "why"), [(0, 2, "the run has the steps 1 to 8"), (9, 2, "the run has the steps 1 to 8")]
)
def test_a_step_that_the_run_does_not_have_is_refused(
    run: Path, step: int, code: int, why: str, capsys: Any
) -> None:
    assert exit_code("replay", run, "--step", step) == code
    assert why in capsys.readouterr().err


def test_data_that_has_changed_is_refused(run: Path, tables_text: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "data")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "other.txt").write_text(tables_text.read_text() + "more")
    config["data"]["path"], config["sha256"] = str(tmp_path / "other.txt"), None
    (folder / "config.json").write_text(json.dumps(config))
    assert exit_code("replay", folder, "--step", 2) == 2
    assert "it has trained on other tokens" in capsys.readouterr().err


def test_what_a_step_has_read_that_diverged_is_written_down_and_replayed(
    run: Path, tables_text: Path, tmp_path: Path, capsys: Any
) -> None:
    assert exit_code("replay", run) == 2
    assert "the run has not diverged; name one with --step" in capsys.readouterr().err
    out = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(DivergedError) as caught:
        train(out, tables_text, 14, **{"optim.learning_rate": 1e30, "optim.clip_norm": 0.0})
    table, step = json.loads((out / "diverged.json").read_text()), caught.value.step
    assert step is not None and table["step"] == step > 8 and table["why"] == str(caught.value)
    assert [*table["batches"]] == [str(step - 1), str(step)]
    stream = open_split(out / "data", "train")
    for number, rows in table["batches"].items():
        assert [row["texts"] for row in rows] == [
            [bytes([first, *targets]).decode()] for first, targets in _windows(out, int(number))
        ]
        for row in rows:
            ids = stream.read(row["token"], row["token"] + 17)
            assert row["file"] == "train_000000.bin" and bytes(ids.tolist()).decode() == row["texts"][0]
    assert exit_code("replay", out, "--texts", 1) == 0
    assert f"Step {step} was reached from checkpoint {step - 1}" in capsys.readouterr().out
    (out / "diverged.json").write_text('{"step": []}')
    assert exit_code("replay", out) == 65
    assert "the record of a divergence is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_that_are_skipped_make_no_update_and_the_log_says_so(
    run: Path, tables_text: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    skipping = train(out, tables_text, 4, skip_steps="2,4")
    rows = skipping.metrics
    assert [row["step"] for row in rows if "skipped" in row] == [2, 4]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3]
    rates = {row["step"]: row["learning_rate"] for row in Run(run).metrics if "loss" in row}
    assert {row["step"]: row["learning_rate"] for row in rows if "loss" in row} == {
        n: rates[n] for n in (1, 3)
    }
    three, four = (jaxgpt.load(f"{out}@{step}").params["wte"]["embedding"] for step in (3, 4))
    np.testing.assert_array_equal(three, four)
    assert "| skipped steps | 2,4 |" in (out / "report.md").read_text()
    shutil.rmtree(out / "checkpoints" / "3")
    found = again(out, 4)
    assert found.skipped and found.metrics == {} and len(found.texts) == 16 and found.equal == [1, 3]
    for changed, why in (
        ("2,4-5", "skip_steps: 2,4 then, 2,4-5 now"),
        ("4", "skip_steps: step 2 is done already"),
    ):
        with pytest.raises(ConfigError, match=re.escape(why)):
            jaxgpt.train(with_settings(read_config(out), {"steps": 6, "skip_steps": changed}), progress=False)
    train(out, tables_text, 6, skip_steps="2,4-5")
    assert [row["step"] for row in skipping.metrics if "skipped" in row] == [2, 4, 5]


def test_gradients_of_blocks_are_joined_by_part_and_by_layer() -> None:
    norms = {
        "h/attn/c_attn/kernel": np.array([3.0, 0.0]),
        "h/attn/c_attn/bias": np.array([4.0, 1.0]),
        "h/mlp/c_fc/kernel": np.array([12.0, 0.0]),
        "ln_f/bias": np.array(0.5),
    }
    head, lines = gradient_table(norms, 10)
    assert [*head] == ["", "all", "attn", "mlp"]
    assert [*lines] == [("ln_f", "0.5", "", ""), ("block 10", "13", "5", "12"), ("block 11", "1", "1", "0")]


def test_losses_that_are_not_finite_have_the_strongest_colour() -> None:
    tokens = [("<b>", None), ("a\n", 0.0), ("b", 2.0), ("c", 9.0), ("d", float("nan")), ("e", float("inf"))]
    seen = Seen(page("a & b", [Tokens([Shown("row 1", tokens, float("nan"))], 4.0)]))
    assert seen.wrong == [] and seen.values("style") == [f"--share: {share}" for share in (100, 50, 0, 0, 0)]
    assert "b" not in [tag for tag, _ in seen.tags] and "<b>a↵\nbcde" in seen.text and "a & b" in seen.text
