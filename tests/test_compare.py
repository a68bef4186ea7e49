"""Runs side by side: settings that differ, figures that were measured, and a picture."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command_line import exit_code

from jaxgpt.cli import main
from jaxgpt.config import ClassifyConfig, GPTConfig, OptimConfig, RunConfig, TrainConfig, save_config
from jaxgpt.training.metrics import MetricsLog

MODEL = GPTConfig(vocab=257, context=64, layers=2, heads=2, width=32)
CONFIG = TrainConfig(steps=20, model=MODEL)


def written(folder: Path, config: RunConfig, rows: dict[int, dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    save_config(dataclasses.replace(config, out_dir=str(folder)), folder)
    log = MetricsLog(folder / "metrics.jsonl")
    for step, row in rows.items():
        log.write(step, row)
    log.close()
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    slow = {0: {"val_loss": 5.5}, 10: {"loss": 4.0, "tokens_per_second": 100.0}, 20: {"val_loss": 3.25}}
    fast = {0: {"val_loss": 5.5}, 10: {"loss": 2.0, "val_loss": 1.5, "tokens_per_second": 300.0}}
    fast |= {20: {"loss": 1.0, "val_loss": 2.5, "tokens_per_second": 200.0}}
    quick = dataclasses.replace(CONFIG, optim=OptimConfig(learning_rate=0.01), seed=3)
    return [written(tmp_path / "slow", CONFIG, slow), written(tmp_path / "fast", quick, fast)]


def test_the_table_has_what_differs_and_what_was_measured(runs: list[Path], capsys: Any) -> None:
    main(["compare", *map(str, runs)])
    lines = capsys.readouterr().out.splitlines()
    parameters = lines[4].split(" | ")[1]
    assert lines == [
        "|  | slow | fast |",
        "| --- | --- | --- |",
        "| seed | 0 | 3 |",
        "| optim.learning_rate | 0.0006 | 0.01 |",
        f"| parameters | {parameters} | {parameters} |",
        "| steps done | 20 | 20 |",
        "| last loss | 4.0000 | 1.0000 |",
        "| best validation loss | 3.2500 at step 20 | 1.5000 at step 10 |",
        "| tokens a second, median | 100 | 250 |",
    ]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_losses_of_all_runs_are_in_one_picture(runs: list[Path], tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    path = tmp_path / f"losses.{ending}"
    main(["compare", *map(str, runs), "--out", str(path)])
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") if ending == "png" else b"<svg" in content


def test_runs_of_other_tasks_have_other_settings_and_no_common_plot(
    runs: list[Path], tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    classifier = ClassifyConfig(model=dataclasses.replace(MODEL, classes=2), labels=("a", "b"), steps=5)
    folder = written(tmp_path / "more" / "slow", classifier, {5: {"loss": 0.5, "test_accuracy": 0.75}})
    main(["compare", str(runs[0]), str(folder)])
    shown = capsys.readouterr().out
    assert (
        f"|  | {runs[0]} | {folder} |" in shown and "| task | pretrain | classify |" in shown
    )  # the names are alike
    assert "| test_accuracy |  | 0.7500 |" in shown
    assert exit_code("compare", runs[0], folder, "--out", tmp_path / "a.png") == 2
    assert "nats per text and nats per token" in capsys.readouterr().err


def test_what_cannot_be_compared(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    assert exit_code("compare", runs[0]) == 2
    assert exit_code("compare", *runs, "--out", tmp_path / "a.txt") == 2
    assert "a picture ends in .png, .svg, .pdf" in capsys.readouterr().err
    assert exit_code("compare", runs[0], tmp_path / "none") == 66
    assert not (tmp_path / "a.txt").exists()
