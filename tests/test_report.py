"""The report of a run, made from what the training loop and `device_facts` really write into the log."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from command_line import exit_code

from jaxgpt.config import DataConfig, GPTConfig, TrainConfig, save_config
from jaxgpt.errors import DataError, MissingError
from jaxgpt.evaluation.report import write_report
from jaxgpt.log import Best
from jaxgpt.text.tokenizer import TOKENIZER_FILE
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training import devices
from jaxgpt.training import loop as training_loop
from jaxgpt.training.devices import device_facts
from jaxgpt.training.loop import Event, Loop, train
from jaxgpt.training.metrics import MetricsLog
from jaxgpt.training.starts import STARTS_FILE, environment, recorded
from jaxgpt.training.stop import Stop

MODEL = GPTConfig(vocab=257, context=64, layers=2, heads=2, width=32, compute_dtype="bfloat16")
CONFIG = TrainConfig(steps=400, batch=4, accumulate=2, model=MODEL, data=DataConfig(tokenizer="gpt2"))
V5E, H200 = ("TPU v5 lite", 8), ("NVIDIA H200", 2)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory before its first step. The settings name another tokenizer than its data have."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_config(CONFIG, folder)
    load_tokenizer("bytes").save(folder / TOKENIZER_FILE)
    return folder


class Run:
    """The training loop over steps that compute nothing; the loss of step n is 1000 / n."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log, self.now, self.done = MetricsLog(run_dir / "metrics.jsonl"), 0.0, 0
        monkeypatch.setattr(training_loop, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def to(self, last: int, *, seconds: float, on: tuple[str, int], **facts: float) -> None:
        """Train to step `last` on these devices, after writing what `pretrain` writes about them."""
        rows = facts | device_facts(mesh_of(*on), MODEL, self.log.rows())
        if rows:
            self.log.write(self.done, rows)
        events = [
            Event("val_loss", 20, lambda step: {"val_loss": abs(step - 40) / 100 + 2}),
            Event("sample", 20, lambda step: {"sample": f"written at {step}"}),
        ]
        loop: Any = Loop(
            step=lambda step, batch: (step + 1, {"loss": Loss(self, step + 1, seconds), "grad_norm": 1.0}),
            batch_at=lambda number: None,
            steps=last,
            tokens_per_step=CONFIG.tokens_per_step,
            log_every=10,
            sinks=[self.log],
            events=events,
            best=Best("val_loss"),
            save=lambda state, step: None,
            save_every=1000,
            stop=Stop(),
        )
        known = {(row["step"], name) for row in self.log.rows() for name in row}
        train(self.done, loop, start=self.done, measured=lambda *what: what in known)  # type: ignore[arg-type]
        self.done = last


class Loss:
    """The loss of a step, which has finished when it is read."""

    def __init__(self, run: Run, step: int, seconds: float) -> None:
        self.run, self.step, self.seconds = run, step, seconds

    def __float__(self) -> float:
        self.run.now += self.seconds
        return 1000 / self.step


def mesh_of(kind: str, count: int) -> Any:
    """What a report has to know of a mesh."""
    return SimpleNamespace(size=count, local_devices=[SimpleNamespace(device_kind=kind, platform="tpu")])


@pytest.fixture
def run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(run_dir, monkeypatch)


def record(run_dir: Path, *rows: Mapping[str, Any]) -> None:
    log = MetricsLog(run_dir / "metrics.jsonl")
    for row in rows:
        log.write(row["step"], {key: value for key, value in row.items() if key != "step"})


def test_the_facts_of_the_run_are_in_the_report(run_dir: Path, run: Run) -> None:
    run.to(60, seconds=1.0, on=V5E, unigram_loss=3.1, bigram_loss=2.4)
    path = write_report(run_dir)
    text = path.read_text()
    assert path == run_dir / "report.md"
    assert text.startswith("# tiny\n")
    assert "| parameters | 35,744 |" in text  # 257 x 32 + 64 x 32 + 2 x (12 x 32^2 + 13 x 32) + 64
    assert "| steps | 60 of 400 |" in text
    assert "| tokens | 30,720 (512 a step) |" in text  # 60 steps of 4 x 2 x 64
    assert "| devices | 8 x TPU v5 lite |" in text
    assert "| 20 | 2.2000 |  |" in text and "| 40 | 2.0000 | best |" in text and "| 60 | 2.2000 |  |" in text
    assert "To compare: a unigram model 3.1000, a bigram model 2.4000." in text
    assert re.findall(r"After (\S+) steps:\n\n```text\n(.*)", text) == [
        ("0", "written at 0"),
        ("40", "written at 40"),
        ("60", "written at 60"),
    ]


def test_what_another_run_would_need_to_be_the_same_is_in_the_report(
    run_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.to(20, seconds=1.0, on=V5E)
    assert "wall time" not in write_report(run_dir).read_text(), "a run from before it was recorded"
    clock = iter([150.0, 190.0])
    monkeypatch.setattr("jaxgpt.training.starts.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for argv, since in ((["/bin/jaxgpt", "pretrain", "a b.toml"], 100.0), (["script.py"], 180.0)):
        monkeypatch.setattr(sys, "argv", argv)
        with recorded(run_dir, 0, since):
            pass
    text = write_report(run_dir).read_text()
    assert "| batch | 8 sequences (4 x 2) |" in text and "| seed | 0 |" in text
    assert "| learning rate | 0.0006 at most, cosine |" in text
    assert "| wall time | 60 s |" in text and f"| environment | {environment()} |" in text
    assert "| command | `jaxgpt pretrain 'a b.toml'`, then `jaxgpt.train(...) in Python` |" in text
    with (run_dir / STARTS_FILE).open("a") as file:
        file.write('{"step": 20, "command": "jaxgpt.train(...) in Python"}\n')
    assert (
        "| wall time | 60 s, without 1 of 3 starts, which were killed |" in write_report(run_dir).read_text()
    )
    with (run_dir / STARTS_FILE).open("ab") as file:
        file.write('{"step": 20, "comm\u00e9'.encode()[:-1])  # killed within a line, and within a character
    assert "without 1 of 3 starts" in write_report(run_dir).read_text()
    clock = iter([20.0])
    with recorded(run_dir, 20, 10.0):
        pass
    assert (
        "| wall time | 70 s, without 1 of 4 starts, which were killed |" in write_report(run_dir).read_text()
    )


def test_the_tokenizer_is_the_one_of_the_run_and_not_of_the_settings(run_dir: Path) -> None:
    assert "| vocabulary | 257 tokens (bytes) |" in write_report(run_dir).read_text()
    (run_dir / TOKENIZER_FILE).unlink()
    assert "| vocabulary | 257 tokens (of an unknown tokenizer) |" in write_report(run_dir).read_text()


def test_speed_is_the_median_and_mfu_follows_the_stated_convention(run_dir: Path, run: Run) -> None:
    run.to(20, seconds=512 / 3e9, on=V5E)
    run.to(50, seconds=512 / 2e9, on=V5E)
    run.to(60, seconds=512 / 1e9, on=V5E)
    text = write_report(run_dir).read_text()
    # A row every ten steps: two at 3e9 tokens a second, three at 2e9, one at 1e9.
    assert "On 8 x TPU v5 lite: 2,000,000,000 tokens a second (median of 6 measurements)" in text
    # (6 (35,744 - 64 x 32) + 12 x 2 x 32 x 64) x 2e9 / (8 x 197e12) = 31.89%
    assert "MFU): 31.9% of 1.97e+14 FLOP/s a device" in text
    assert "2.513e+05 FLOPs" in text and "Causal masking does not lower the count" in text


def test_speeds_belong_to_the_devices_they_were_measured_on(run_dir: Path, run: Run) -> None:
    run.to(40, seconds=512 / 2e9, on=V5E)
    run.to(60, seconds=512 / 1e9, on=H200)
    text = write_report(run_dir).read_text()
    assert "| devices | 8 x TPU v5 lite up to step 40, then 2 x NVIDIA H200 |" in text
    assert "On 8 x TPU v5 lite: 2,000,000,000 tokens a second (median of 4 measurements)." in text
    assert "On 2 x NVIDIA H200: 1,000,000,000 tokens a second (median of 2 measurements)." in text
    # 251,328 FLOPs a token (worked out above): x 2e9 / (8 x 197e12) and x 1e9 / (2 x 989.5e12)
    assert re.findall(r"MFU\): (\S+)", text) == ["31.9%", "12.7%"]


def test_going_on_on_the_same_devices_writes_nothing_about_them_again(run_dir: Path, run: Run) -> None:
    for last in (10, 20):
        run.to(last, seconds=1.0, on=V5E)
    assert [row for row in run.log.rows() if "devices" in row] == [
        {"step": 0, "devices": 8, "device_kind": "TPU v5 lite"}
    ]
    run.to(30, seconds=1.0, on=(V5E[0], 4))
    assert run.log.rows()[-4] == {"step": 20, "devices": 4, "device_kind": "TPU v5 lite"}


@pytest.mark.slow
def test_devices_of_a_run_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run on four devices, and resumed on eight; its data are prepared, which decides the tokenizer."""
    (tmp_path / "text.txt").write_text("word " * 400)
    prepare = ["prepare", tmp_path / "text.txt", "--out", tmp_path / "data", "--tokenizer", "bytes"]
    train = ["pretrain", "nano", "--data.path", tmp_path / "data", "--data.tokenizer", "gpt2"]
    train += ["--out-dir", tmp_path / "run", "--model.layers", 1, "--model.heads", 1, "--model.width", 8]
    train += ["--model.context", 8, "--batch", 8, "--eval-every", 0, "--log-every", 2]
    code_of(*prepare)
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:4])
    code_of(*train, "--steps", 4)
    monkeypatch.undo()
    code_of(*train, "--steps", 8)
    text = (tmp_path / "run" / "report.md").read_text()
    assert "| devices | 4 x cpu up to step 4, then 8 x cpu |" in text
    assert "| vocabulary | 257 tokens (bytes) |" in text
    assert len(re.findall(r"On [48] x cpu: \S+ tokens a second", text)) == 2
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    facts = [row for row in map(json.loads, log) if "device_kind" in row]
    assert [(row["step"], row["devices"], row["device_kind"]) for row in facts] == [
        (0, 4, "cpu"),
        (4, 8, "cpu"),
    ]
    assert all(row["matmul_flops"] > 0 for row in facts)


def code_of(*argv: object) -> None:
    assert exit_code(*argv) == 0


def test_first_middle_and_last_samples_are_shown(run_dir: Path) -> None:
    record(run_dir, *[{"step": step, "sample": f"sample {step}"} for step in range(10, 60, 10)])
    text = write_report(run_dir).read_text()
    assert re.findall("sample ..", text) == ["sample 10", "sample 30", "sample 50"]


def test_a_single_sample_is_shown_once(run_dir: Path) -> None:
    record(run_dir, {"step": 1, "sample": "only one"})
    assert write_report(run_dir).read_text().count("only one") == 1


@pytest.mark.parametrize("sample", ["```\n# no heading\n```", "`````", "plain", "", "a\n````text"])
def test_a_sample_cannot_end_its_own_fence(run_dir: Path, sample: str) -> None:
    record(run_dir, {"step": 1, "sample": sample})
    text = write_report(run_dir).read_text()
    found = re.search("^(`+)text$", text, re.MULTILINE)
    assert found
    fence = found[1]
    body = text.split(f"{fence}text\n", 1)[1]
    assert body.startswith(f"{sample}\n{fence}\n")
    assert fence not in sample


def test_half_a_surrogate_pair_in_a_sample_does_not_stop_the_report(run_dir: Path) -> None:
    record(run_dir, {"step": 1, "sample": "broken \ud800"})
    assert r"broken \ud800" in write_report(run_dir).read_text()


def test_control_characters_of_a_sample_are_shown_as_pictures(run_dir: Path) -> None:
    record(run_dir, {"step": 1, "sample": "a\x00b\rc\x7fd\te\nf\u00e9"})
    report = write_report(run_dir).read_bytes().decode()
    assert "a\u2400b\u240dc\u2421d\te\nf\u00e9" in report


def test_without_rows_the_report_says_what_is_missing(run_dir: Path) -> None:
    text = write_report(run_dir).read_text()
    for sentence in ("No loss was", "No validation loss was", "No sample was", "No speed was"):
        assert f"{sentence} recorded." in text
    assert "| steps | 0 of 400 |" in text
    assert not (run_dir / "loss.png").exists()


def test_without_recorded_devices_mfu_is_unknown(run_dir: Path) -> None:
    record(run_dir, {"step": 1, "tokens_per_second": 10.0})
    assert "MFU): unknown, because the run recorded no devices" in write_report(run_dir).read_text()


def test_on_an_unlisted_device_mfu_is_unknown_and_the_measured_share_is_given(
    run_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "measured_matmul_flops", lambda *args, **more: 1e12)
    run.to(10, seconds=512 / 1e6, on=("cpu", 1))
    text = write_report(run_dir).read_text()
    assert "MFU): unknown, because no data sheet figure is known for cpu in bfloat16." in text
    assert "It is 25.1% of the 1e+12 FLOP/s" in text


def test_the_same_run_gives_the_same_bytes(run_dir: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    run.to(60, seconds=1.0, on=V5E)

    def files() -> tuple[bytes, bytes]:
        write_report(run_dir)
        return (run_dir / "report.md").read_bytes(), (run_dir / "loss.png").read_bytes()

    assert files() == files()


def test_the_curve_is_a_picture_that_the_report_shows(run_dir: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    run.to(60, seconds=1.0, on=V5E)
    text = write_report(run_dir).read_text()
    assert "(loss.png)" in text
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_no_figure_open_and_needs_no_display(run_dir: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    run.to(60, seconds=1.0, on=V5E)
    write_report(run_dir)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_without_matplotlib_the_report_says_how_to_get_the_curve(
    run_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run.to(60, seconds=1.0, on=V5E)
    text = write_report(run_dir).read_text()
    assert "pip install 'jaxgpt[plots]'" in text and "loss.png" not in text
    assert "| 40 | 2.0000 | best |" in text


def test_a_bar_in_a_path_does_not_split_a_table_cell(run_dir: Path) -> None:
    save_config(TrainConfig(model=MODEL, data=DataConfig(path="a|b")), run_dir)
    assert r"| data | a\|b |" in write_report(run_dir).read_text()


def test_a_folder_that_is_no_run_and_damaged_metrics_are_errors(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not a run directory"):
        write_report(tmp_path)
    (run_dir / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1"):
        write_report(run_dir)
