"""A classifier through the command line: from a table to labels, stopped, resumed, exported and read back."""

import io
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import exit_code
from small_runs import logged, table_of

import jaxgpt
from jaxgpt.cli import main
from jaxgpt.config import ClassifyConfig, read_config
from jaxgpt.finetuning.chosen import chosen_of
from jaxgpt.finetuning.classifier import load_classifier
from jaxgpt.log import read_rows
from jaxgpt.training.trainable import EVERYTHING, Chosen

TEXTS = [(f"{a} plus {b}", "sum") for a in range(8) for b in range(8)]
TEXTS += [(f"a tale of {a} and {b} that goes on", "tale") for a in range(8) for b in range(8)]
SHORT = ["--batch", "8", "--eval-every", "6", "--log-every", "1", "--optim.learning-rate", "0.02"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_of(tmp_path_factory.mktemp("table") / "texts.csv", TEXTS)


def finetune(model: Path, table: Path, out: Path, *more: object, code: int = 0) -> None:
    given = ["--from", model, "--data.path", table, "--out-dir", out, *SHORT, *more]
    assert exit_code("finetune", "classify", *given) == code


@pytest.fixture(scope="module")
def run(lm_folder: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(lm_folder, table, out, "--steps", "12")
    return out


def test_a_run_learns_and_holds_its_labels(run: Path, lm) -> None:
    rows = read_rows(run / "metrics.jsonl")
    accuracy = {
        (row["step"], part): row[f"{part}_accuracy"]
        for row in rows
        for part in ("val", "test")
        if f"{part}_accuracy" in row
    }
    assert set(accuracy) == {(0, "val"), (6, "val"), (12, "val"), (0, "test"), (12, "test")}
    assert accuracy[12, "test"] > 0.9 > accuracy[0, "test"]
    config = read_config(run)
    assert isinstance(config, ClassifyConfig) and config.labels == ("sum", "tale")
    assert (config.model.width, config.model.classes, config.steps) == (8, 2, 12)
    [last] = [row for row in rows if row["step"] == 12 and "test_calibration" in row]
    texts_B, confidence_B, accuracy_B = np.array(json.loads(last["test_calibration"]))
    assert texts_B.sum() == sum(map(sum, json.loads(last["test_confusion"])))
    assert np.sum(texts_B * accuracy_B) / texts_B.sum() == pytest.approx(last["test_accuracy"])
    full = np.flatnonzero(texts_B)
    np.testing.assert_array_equal(np.ceil(confidence_B[full] * 10) - 1, full)
    apart = np.sum(texts_B * np.abs(accuracy_B - confidence_B)) / texts_B.sum()
    assert last["test_calibration_error"] == pytest.approx(apart)
    report = (run / "report.md").read_text()
    assert f"The expected calibration error is {apart:.4f}" in report
    assert "| sum |" in report and "nats per text" in report and "| texts | 96 (8 a step) |" in report


def test_only_the_last_block_and_the_head_trained(run: Path, lm) -> None:
    params = load_classifier(run).params
    for name in ("wte", "wpe"):
        np.testing.assert_array_equal(params[name]["embedding"], lm.params[name]["embedding"])
    assert np.any(params["h"]["mlp"]["c_fc"]["kernel"] != lm.params["h"]["mlp"]["c_fc"]["kernel"])


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_went_through(
    run: Path, lm_folder: Path, table: Path, tmp_path: Path
) -> None:
    finetune(lm_folder, table, tmp_path / "parts", "--steps", "5")
    finetune(lm_folder, table, tmp_path / "parts", "--steps", "12")
    assert logged(run) == logged(tmp_path / "parts")
    jax.tree.map(
        np.testing.assert_array_equal, load_classifier(run).params, load_classifier(tmp_path / "parts").params
    )


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_early_and_keeps_its_best(
    lm_folder: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With a learning rate of nothing, the first evaluation after a step is the best of all."""
    out = tmp_path / "run"
    waits = [
        "--optim.learning-rate",
        "1e-30",
        "--eval-every",
        "2",
        "--keep-checkpoints",
        "1",
        "--steps",
        "40",
    ]
    waits += ["--best-metric", "val_accuracy", "--checkpoint-every", "2"]
    told = "ended early, after 6 steps: the best is val_accuracy 0."
    finetune(lm_folder, table, out, *waits, "--patience", "2")
    rows = read_rows(out / "metrics.jsonl")
    assert told in capsys.readouterr().err
    assert [row["step"] for row in rows if "val_accuracy" in row] == [0, 2, 4, 6]
    assert [row["step"] for row in rows if "test_accuracy" in row] == [0, 6]
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"2", "6"}
    report = (out / "report.md").read_text()
    assert "The best checkpoint is that of step 2 (val_accuracy 0." in report and "`run@best`" in report
    assert "The run ended early, because 2 evaluations" in report
    finetune(lm_folder, table, out, *waits, "--patience", "2")
    assert told in capsys.readouterr().err and read_rows(out / "metrics.jsonl") == rows
    shutil.rmtree(out / "checkpoints" / "6")  # as if the run had been killed before it saved its last step
    finetune(lm_folder, table, out, *waits, "--patience", "2")
    again = read_rows(out / "metrics.jsonl")
    assert [row.get("val_loss") for row in again] == [row.get("val_loss") for row in rows]
    finetune(lm_folder, table, out, *waits, "--patience", "3")
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"2", "8"}
    assert jaxgpt.classify(f"{out}@best", ["3 plus 9"])[0].probabilities["sum"] > 0
    capsys.readouterr()
    assert exit_code("classify", f"{out}@6", "3 plus 9") == 66
    assert f"name one of {out}@2, {out}@8" in capsys.readouterr().err
    finetune(lm_folder, table, tmp_path / "no", "--patience", "1", "--data.val-fraction", "0", code=2)
    assert "patience = 1: there is nothing to evaluate on" in capsys.readouterr().err


def test_texts_are_classified_from_arguments_lines_and_python(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["3 plus 9", "a tale of 4 and 5 that goes on"]
    found = jaxgpt.classify(run, texts)
    assert [each.label for each in found] == ["sum", "tale"]
    assert all(sum(each.probabilities.values()) == pytest.approx(1) for each in found)
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n\n")
    typed = io.TextIOWrapper(io.BytesIO("\n".join(texts).encode()))
    monkeypatch.setattr("sys.stdin", typed)
    outputs = []
    for more in (texts, ["--file", str(tmp_path / "lines.txt")], []):
        main(["classify", str(run), *more, "--json"])
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert outputs[0] == outputs[1] == outputs[2]
    assert outputs[0][0]["label"] == "sum" and outputs[0][0]["text"] == texts[0]
    main(["classify", str(run), texts[1]])
    label, probability, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, text) == ("tale", texts[1]) and float(probability) > 0.5


@pytest.mark.parametrize("to", ["huggingface", "jaxgpt"])
def test_a_converted_classifier_finds_the_same(run: Path, tmp_path: Path, to: str) -> None:
    main(["convert", str(run), str(tmp_path / to), "--to", to])
    texts = ["3 plus 9", "a tale"]
    for ours, theirs in zip(jaxgpt.classify(run, texts), jaxgpt.classify(tmp_path / to, texts), strict=True):
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)
    if to == "huggingface":
        config = json.loads((tmp_path / to / "config.json").read_text())
        assert config["architectures"] == ["GPT2ForSequenceClassification"]
        assert config["id2label"] == {"0": "sum", "1": "tale"} and config["pad_token_id"] == 256


def test_what_cannot_be_said_or_done_is_refused(
    run: Path, lm_folder: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(*args: object, code: int) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(map(str, args)))
        assert done.value.code == code
        return capsys.readouterr().err

    assert "classes = 2" in refused("convert", run, tmp_path / "ckpt", "--to", "nanogpt", code=2)
    assert "no head for classes" in refused("classify", lm_folder, "text", code=65)
    assert "text 1 is empty" in refused("classify", run, "text", "", code=65)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9\n")
    assert "not UTF-8" in refused("classify", run, "--file", tmp_path / "latin1.txt", code=65)
    assert "nowhere.txt" in refused("classify", run, "--file", tmp_path / "nowhere.txt", code=66)
    assert "jaxgpt pretrain nano" in refused("finetune", "nano", code=2)
    assert "jaxgpt finetune classify" in refused("pretrain", "classify", code=2)
    one = tmp_path / "one.csv"
    one.write_text("label,text\na,x\na,y\n")
    finetune(lm_folder, one, tmp_path / "out", code=65)
    assert "all 2 texts have the label 'a'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_which_parameters_train() -> None:
    def chosen(**settings: object) -> Chosen:
        return chosen_of(ClassifyConfig(**settings), always="score/.*")  # type: ignore[arg-type]

    assert chosen(trains="all") == EVERYTHING
    assert chosen(trains="head") == Chosen(pattern="score/.*")
    assert chosen() == Chosen(pattern="score/.*|h/.*|ln_f/.*", layers=(11, 12))
    assert chosen(layers="10:12") == Chosen(pattern="score/.*|h/.*|ln_f/.*", layers=(10, 12))
    assert chosen(trains="h/mlp/.*") == Chosen(pattern="score/.*|h/mlp/.*")
