"""The report of a run."""

import re
import sys

import pytest

from jaxgpt.config import DataConfig, GPTConfig, TrainConfig, save_config
from jaxgpt.errors import DataError, MissingError
from jaxgpt.evaluation.report import write_report
from jaxgpt.training.metrics import MetricsLog

MODEL = GPTConfig(vocab=256, context=64, layers=2, heads=2, width=32, compute_dtype="bfloat16")
CONFIG = TrainConfig(steps=400, batch=4, accumulate=2, model=MODEL, data=DataConfig(tokenizer="bytes"))


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_config(CONFIG, folder)
    return folder


def record(run_dir, *rows):
    log = MetricsLog(run_dir / "metrics.jsonl")
    for row in rows:
        log.write(row["step"], {key: value for key, value in row.items() if key != "step"})


FULL = [
    {"step": 0, "devices": 8, "device_kind": "TPU v5 lite", "unigram_loss": 3.1, "bigram_loss": 2.4},
    {"step": 10, "loss": 5.0, "tokens_per_second": 100.0},
    {"step": 20, "loss": 4.0, "tokens_per_second": 3_000_000_000.0, "val_loss": 3.9, "sample": "second"},
    {"step": 30, "loss": 3.0, "tokens_per_second": 2_000_000_000.0, "val_loss": 2.25, "sample": "third"},
    {"step": 40, "loss": 2.0, "tokens_per_second": 2_000_000_000.0, "val_loss": 2.5, "sample": "fourth"},
    {"step": 40, "sample": "fifth"},
]


def test_the_facts_of_the_run_are_in_the_report(run_dir):
    record(run_dir, *FULL)
    path = write_report(run_dir)
    text = path.read_text()
    assert path == run_dir / "report.md"
    assert text.startswith("# tiny\n")
    assert "| parameters | 35,712 |" in text  # 256 x 32 + 64 x 32 + 2 x (12 x 32^2 + 13 x 32) + 64
    assert "| steps | 40 of 400 |" in text
    assert "| tokens | 20,480 (512 a step) |" in text  # 40 steps of 4 x 2 x 64
    assert "| devices | 8 x TPU v5 lite |" in text
    assert "| 30 | 2.2500 | best |" in text and "| 40 | 2.5000 |  |" in text
    assert "To compare: a unigram model 3.1000, a bigram model 2.4000." in text


def test_speed_is_the_median_and_mfu_follows_the_stated_convention(run_dir):
    record(run_dir, *FULL)
    text = write_report(run_dir).read_text()
    assert "2,000,000,000 tokens a second (median of 4 measurements)" in text
    # (6 (35,712 - 64 x 32) + 12 x 2 x 32 x 64) x 2e9 / (8 x 197e12) = 31.87%
    assert "MFU): 31.9% of 1.97e+14 FLOP/s a device" in text
    assert "2.511e+05 FLOPs" in text and "causal masking is not discounted" in text


def test_first_middle_and_last_samples_are_shown(run_dir):
    record(run_dir, *[{"step": step, "sample": f"sample {step}"} for step in range(10, 60, 10)])
    text = write_report(run_dir).read_text()
    assert re.findall("sample ..", text) == ["sample 10", "sample 30", "sample 50"]


def test_a_single_sample_is_shown_once(run_dir):
    record(run_dir, {"step": 1, "sample": "only one"})
    assert write_report(run_dir).read_text().count("only one") == 1


@pytest.mark.parametrize("sample", ["```\n# no heading\n```", "`````", "plain", "", "a\n````text"])
def test_a_sample_cannot_end_its_own_fence(run_dir, sample):
    record(run_dir, {"step": 1, "sample": sample})
    text = write_report(run_dir).read_text()
    fence = re.search("^(`+)text$", text, re.MULTILINE)[1]
    body = text.split(f"{fence}text\n", 1)[1]
    assert body.startswith(f"{sample}\n{fence}\n")
    assert fence not in sample


def test_half_a_surrogate_pair_in_a_sample_does_not_stop_the_report(run_dir):
    record(run_dir, {"step": 1, "sample": "broken \ud800"})
    assert r"broken \ud800" in write_report(run_dir).read_text()


def test_control_characters_of_a_sample_are_shown_as_pictures(run_dir):
    record(run_dir, {"step": 1, "sample": "a\x00b\rc\x7fd\te\nf\u00e9"})
    report = write_report(run_dir).read_bytes().decode()
    assert "a\u2400b\u240dc\u2421d\te\nf\u00e9" in report


def test_without_rows_the_report_says_what_is_missing(run_dir):
    text = write_report(run_dir).read_text()
    for sentence in ("No loss was", "No validation loss was", "No sample was", "No speed was"):
        assert f"{sentence} recorded." in text
    assert "| steps | 0 of 400 |" in text
    assert not (run_dir / "loss.png").exists()


def test_a_run_resumed_on_other_devices_is_reported_on_the_latest(run_dir):
    record(run_dir, *FULL, {"step": 40, "devices": 2, "device_kind": "NVIDIA H200"})
    assert "| devices | 2 x NVIDIA H200 |" in write_report(run_dir).read_text()


def test_without_recorded_devices_mfu_is_unknown(run_dir):
    record(run_dir, {"step": 1, "tokens_per_second": 10.0})
    assert "MFU): unknown, because the run recorded no devices" in write_report(run_dir).read_text()


def test_on_an_unlisted_device_mfu_is_unknown_and_the_measured_share_is_given(run_dir):
    record(
        run_dir,
        {"step": 1, "tokens_per_second": 1e6, "devices": 1, "device_kind": "cpu", "matmul_flops": 1e12},
    )
    text = write_report(run_dir).read_text()
    assert "MFU): unknown, because no data sheet figure is known for cpu in bfloat16." in text
    assert "It is 25.1% of the 1e+12 FLOP/s" in text


def test_the_same_run_gives_the_same_bytes(run_dir):
    pytest.importorskip("matplotlib")
    record(run_dir, *FULL)

    def files():
        write_report(run_dir)
        return (run_dir / "report.md").read_bytes(), (run_dir / "loss.png").read_bytes()

    assert files() == files()


def test_the_curve_is_a_picture_that_the_report_shows(run_dir):
    pytest.importorskip("matplotlib")
    record(run_dir, *FULL)
    text = write_report(run_dir).read_text()
    assert "(loss.png)" in text
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_leaves_no_figure_open_and_needs_no_display(run_dir):
    pytest.importorskip("matplotlib")
    record(run_dir, *FULL)
    write_report(run_dir)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_without_matplotlib_the_report_says_how_to_get_the_curve(run_dir, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    record(run_dir, *FULL)
    text = write_report(run_dir).read_text()
    assert "pip install 'jaxgpt[plots]'" in text and "loss.png" not in text
    assert "| 30 | 2.2500 | best |" in text


def test_a_bar_in_a_path_does_not_split_a_table_cell(run_dir):
    save_config(TrainConfig(model=MODEL, data=DataConfig(path="a|b")), run_dir)
    assert r"| data | a\|b |" in write_report(run_dir).read_text()


def test_a_folder_that_is_no_run_and_damaged_metrics_are_errors(run_dir, tmp_path):
    with pytest.raises(MissingError, match="not a run directory"):
        write_report(tmp_path)
    (run_dir / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1"):
        write_report(run_dir)
