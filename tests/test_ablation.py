"""tools/ablation.py: the best learning rate is chosen on validation texts, and rows are compared in pairs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from jaxgpt.errors import ConfigError

TEXTS = [(f"{a} plus {b}", "sum") for a in range(5) for b in range(5)]
TEXTS += [(f"a tale of {a} and {b}", "tale") for a in range(5) for b in range(6)]


@pytest.fixture
def ablation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    return importlib.import_module("ablation")


def test_the_learning_rate_is_chosen_on_validation_texts_and_rows_are_compared_in_pairs(
    ablation: ModuleType,
) -> None:
    result = ablation.Result
    results = [
        result("row", 0.1, 0, 0.5, 0.9),  # better in the test, which must not be looked at
        result("row", 0.1, 1, 0.5, 0.9),
        result("row", 0.2, 0, 0.8, 0.7),
        result("row", 0.2, 1, 0.6, 0.8),
        result(ablation.RANDOM, 0.1, 0, 0.5, 0.6),
        result(ablation.RANDOM, 0.1, 1, 0.5, 0.9),
    ]
    assert [run.test_accuracy for run in ablation.chosen(results)["row"]] == [0.7, 0.8]
    more = result("row", 0.2, 2, 0.1, 0.6)  # the other rate did not run with this seed, so it decides nothing
    assert [run.test_accuracy for run in ablation.chosen([*results, more])["row"]] == [0.7, 0.8, 0.6]
    written = ablation.table_of(results)
    assert "| row | 0.2 | 70.00% | 75.00% ± 7.07% | +0.00% (1 of 2) |" in written
    assert f"| {ablation.RANDOM} | 0.1 | 50.00% | 75.00% ± 21.21% |  |" in written


def test_a_row_that_is_not_there_is_named(ablation: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 'none'"):
        ablation.main(ablation.Args(model="m", data=tmp_path, rows=("none",)))


@pytest.mark.slow
def test_rows_are_run_and_the_same_call_runs_none_again(
    ablation: ModuleType, lm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "texts.csv"
    data.write_text("label,text\n" + "".join(f"{label},{text}\n" for text, label in TEXTS))
    args = ablation.Args(
        model=str(lm_folder),
        data=data,
        out=tmp_path / "runs",
        rows=("last token, head alone", ablation.RANDOM),
        seeds=2,
        choose_on=1,
        epochs=2,
        learning_rates=(0.01, 0.02),
        val_fraction=0.2,
    )
    ablation.main(args)
    first = capsys.readouterr().out
    assert first.count("\n") == 2 + 2 and "last token, head alone" in first
    logs = sorted((tmp_path / "runs").glob("*/metrics.jsonl"))
    assert len(logs) == 2 * (2 + 1)
    before = [log.read_bytes() for log in logs]
    ablation.main(args)
    assert capsys.readouterr().out == first and [log.read_bytes() for log in logs] == before
