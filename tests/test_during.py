"""What a model is measured on as it trains: the same as afterwards, on a mesh, resumed, refused in time."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from small_runs import TABLES, without_speed

import jaxgpt
from jaxgpt.config import RunConfig
from jaxgpt.display import no_progress
from jaxgpt.errors import ConfigError, DataError, JaxgptError, MissingError
from jaxgpt.evaluation.during import opened
from jaxgpt.log import Best
from jaxgpt.training.replay import replay
from jaxgpt.weights.checkpoint import CHECKPOINTS

PASSAGES = ["3 times 4 is 12.", "5 times 6 is 30.", "1 times 7 is 7."]
SETTINGS: dict[str, Any] = {
    "model.context": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.width": 8,
    "model.dropout": 0.1,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "optim.learning_rate": 0.01,
    "batch": 8,
    "log_every": 1,
    "eval_every": 0,
    "checkpoint_every": 2,
    "keep_checkpoints": 9,
    "mesh.data": 2,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "evaluation.tasks": ["lambada:harness", "1bw"],
    "evaluation.every": 2,
    "evaluation.stride": 8,
    "evaluation.limit": 2,
    "best_metric": "1bw:paper/word_perplexity",
}
FIGURES = (
    "lambada:harness/accuracy",
    "lambada:harness/perplexity",
    "1bw:paper/word_perplexity",
    "text:tokens/loss",
    "text:tokens/perplexity",
    "text:tokens/bits_per_byte",
    "text:tokens/bits_per_word",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to train on, another to measure, and the files of two tasks."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "tables.txt").write_text(TABLES)
    (folder / "other.txt").write_text("Seven times eight is fifty-six. " * 4)
    (folder / "lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    )
    (folder / "news.en.heldout-00000-of-00050").write_text(
        "It is 3 times 4 and 5 times 6 .\nNo , he said .\n"
    )
    return folder


@pytest.fixture(scope="module")
def train(files: Path) -> Callable[..., jaxgpt.Run]:
    def call(out: Path, steps: int = 4, **more: Any) -> jaxgpt.Run:
        places = {"data.path": "tables.txt", "evaluation.data": "other.txt", "evaluation.data_dir": ""}
        given = {name: str(files / place) for name, place in places.items()}
        settings = SETTINGS | given | {"out_dir": str(out), "steps": steps} | more
        return jaxgpt.train("nano", settings, progress=False)

    return call


@pytest.fixture(scope="module")
def whole(train: Callable[..., jaxgpt.Run], tmp_path_factory: pytest.TempPathFactory) -> jaxgpt.Run:
    """An uninterrupted run of four steps on eight devices, measured at the steps 0, 2 and 4."""
    return train(tmp_path_factory.mktemp("runs") / "whole")


def test_a_checkpoint_is_found_again_to_have_what_was_measured_of_it(whole: jaxgpt.Run, files: Path) -> None:
    """On one device, without dropout, and by the functions that measure models which are loaded."""
    found = {(row["step"], name): row[name] for row in whole.metrics for name in row if ":" in name}
    assert list(found) == [(step, name) for step in (0, 2, 4) for name in FIGURES]
    for step in (2, 4):
        lm = jaxgpt.load(f"{whole.directory}@{step}")
        tasks = jaxgpt.evaluate(lm, tasks=["lambada:harness", "1bw"], data_dir=files, stride=8, limit=2)
        text = jaxgpt.evaluate(lm, data=files / "other.txt", stride=8)
        again = [figure.value for figure in (*tasks.values(), *text.values())]
        assert [found[step, name] for name in FIGURES] == pytest.approx(again, rel=1e-5)
    assert found[4, "text:tokens/loss"] < found[0, "text:tokens/loss"]


def test_a_figure_decides_which_checkpoint_is_best_and_the_report_shows_all(whole: jaxgpt.Run) -> None:
    name = "1bw:paper/word_perplexity"
    values = {row["step"]: row[name] for row in whole.metrics if name in row and row["step"]}
    best = Best.of(whole.metrics, name)
    assert best.step == min(values, key=lambda step: values[step]) and best.value == min(values.values())
    report = (whole.directory / "report.md").read_text()
    assert (
        f"The best checkpoint is that of step {best.step} ({name} {best.value:.4f}): `whole@best`." in report
    )
    assert f"| step | {' | '.join(FIGURES)} |" in report and "\n| 2 | " in report in report


@pytest.mark.slow
def test_a_run_that_goes_on_measures_what_one_does_that_went_through(
    whole: jaxgpt.Run, train: Callable[..., jaxgpt.Run], tmp_path: Path
) -> None:
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4)
    assert without_speed(parts.metrics) == without_speed(whole.metrics)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        (
            {"evaluation.tasks": ["hellaswag"]},
            MissingError,
            r"no hellaswag_val.jsonl; .*--evaluation.data-dir",
        ),
        (
            {"evaluation.data": "none.txt"},
            MissingError,
            r"--evaluation.data \(none.txt\): there is no such file",
        ),
        ({"evaluation.tasks": ["lambda"]}, ConfigError, r"no task lambda: .*did you mean lambada\?"),
        ({"evaluation.tasks": ["lm-eval:arc"]}, ConfigError, r"pip install 'jaxgpt\[eval\]'"),
        ({"evaluation.stride": 17}, ConfigError, "stride = 17: the model's context is 16"),
        (
            {"best_metric": "1bw:paper/perplexity"},
            ConfigError,
            r"best_metric = 1bw:paper/perplexity: .*did you mean 1bw:paper/word_perplexity\?",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_slow(
    settings: dict[str, Any],
    kind: type[JaxgptError],
    said: str,
    train: Callable[..., jaxgpt.Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jaxgpt.training.run.compile_step", pytest.fail)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    best = {} if "best_metric" in settings else {"best_metric": "val_loss"}
    with pytest.raises(kind, match=said):
        train(tmp_path / "run", **best | settings)
    assert not (tmp_path / "run").exists()


def test_tasks_of_the_harness_are_measured_with_the_model_as_it_stands(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness itself is played here: it asks the model for two log-probabilities and an answer."""
    seen: list[int | None] = []

    def simple_evaluate(*, model: Any, tasks: list[str], limit: int | None, **_: Any) -> dict[str, Any]:
        seen.append(limit)
        pairs = [("3 times 4 is ", "12"), ("5 times 6 is ", "30")]
        scored = model.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
        asked = SimpleNamespace(args=("1 times ", {"until": ["."], "max_gen_toks": 4}))
        (answer,) = model.generate_until([asked])
        results = {"loglikelihood,none": sum(each for each, _ in scored), "length,none": len(answer)}
        return {"results": dict.fromkeys(tasks, results)}

    tasks = SimpleNamespace(TaskManager=lambda include_path: SimpleNamespace(all_tasks=["tables"]))
    played = SimpleNamespace(simple_evaluate=simple_evaluate, tasks=tasks)
    model = SimpleNamespace(LM=object)
    for name, module in {"": played, ".evaluator": played, ".tasks": tasks, ".api.model": model}.items():
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", module)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.4")
    asked = {"evaluation.tasks": ["lm-eval:tables"], "best_metric": "lm-eval:tables/loglikelihood"}
    asked |= {"mesh.data": 8, "mesh.fsdp": 1, "mesh.tensor": 1}
    run = train(tmp_path / "run", 2, **asked, **{"evaluation.limit": 7})
    assert seen == [1, 7, 7]  # the rehearsal, before the first step, after the last one
    lm = jaxgpt.load(run.directory)
    found = jaxgpt.evaluate(lm, tasks=["lm-eval:tables"])
    for name in ("lm-eval:tables/loglikelihood", "lm-eval:tables/length"):
        values = [row[name] for row in run.metrics if name in row]
        assert len(values) == 2 and values[-1] == pytest.approx(found[name].value, rel=1e-5)
    with pytest.raises(ConfigError, match="did you mean lm-eval:tables/loglikelihood"):
        train(tmp_path / "other", **asked | {"best_metric": "lm-eval:tables/likelihood"})
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"jaxgpt evaluate RUN@STEP --tasks lm-eval:tables"):
        opened(jaxgpt.load_recipe("nano", asked), lm.tokenizer, no_progress)


def test_a_damaged_file_of_a_task_is_said_before_anything_slow(
    train: Callable[..., jaxgpt.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxgpt.training.run.compile_step", pytest.fail)
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(DataError, match="line 1: ValueError"):
        train(
            tmp_path / "run",
            **{"evaluation.data_dir": str(tmp_path), "evaluation.tasks": ["lambada"], "best_metric": "none"},
        )


def test_a_step_is_trained_again_without_the_files_of_the_tasks(whole: jaxgpt.Run) -> None:
    class Asked(Exception):
        pass

    def task_for(recipe: RunConfig) -> Any:
        raise Asked(recipe)

    assert (whole.directory / CHECKPOINTS).is_dir()
    with pytest.raises(Asked) as asked:
        replay(whole.directory, 3, task_for, lambda _: None)
    recipe = asked.value.args[0]
    assert recipe.evaluation.names == () and recipe.best_metric == "none" and recipe.model.context == 16
