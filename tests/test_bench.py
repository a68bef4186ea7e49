import json
from pathlib import Path

import pytest

from jaxgpt.cli import main
from jaxgpt.config import GPTConfig
from jaxgpt.training.flops import train_flops_per_token

TINY = [
    *("--layers", "1", "--heads", "2", "--width", "8", "--context", "16"),
    *("--vocab", "50", "--batch", "8", "--steps", "3"),
]


def bench(*args: str, code: int = 0, what: str = "train") -> None:
    with pytest.raises(SystemExit) as done:
        main(["bench", what, *args])
    assert done.value.code == code


def test_figures_agree_with_one_another(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bench(*TINY, "--json", str(tmp_path / "bench.json"))
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert GPTConfig(**figures["model"]) == GPTConfig(layers=1, heads=2, width=8, context=16, vocab=50)
    assert figures["tokens_per_second"] == pytest.approx(8 * 16 / figures["step_seconds"])
    assert 0 < figures["step_seconds_min"] <= figures["step_seconds"] <= figures["step_seconds_max"]
    assert figures["first_step_seconds"] > figures["step_seconds"]
    flops = figures["tokens_per_second"] * train_flops_per_token(GPTConfig(**figures["model"]))
    assert figures["utilisation_of_matmul"] == pytest.approx(flops / (8 * figures["matmul_flops"]))
    assert figures["utilisation_of_peak"] is None  # no data sheet for this CPU
    assert "tokens_per_second" in capsys.readouterr().out


def test_a_preset_gives_the_model_and_sizes_change_it(tmp_path: Path) -> None:
    bench("--preset", "nano", *TINY, "--steps", "1", "--json", str(tmp_path / "bench.json"))
    assert json.loads((tmp_path / "bench.json").read_text())["model"]["vocab"] == 50


def test_a_batch_that_the_devices_do_not_divide_is_refused(capsys: pytest.CaptureFixture) -> None:
    bench(*TINY, "--batch", "7", code=2)
    assert "does not divide" in capsys.readouterr().err


def test_figures_of_generation_agree_with_one_another(tmp_path: Path) -> None:
    sizes = [*TINY[:-4], "--batch", "2", "--steps", "2", "--prompt", "5", "--new", "9", "--mesh.tensor", "2"]
    bench(*sizes, "--json", str(tmp_path / "bench.json"), what="generate")
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert figures["tokens_per_second"] == pytest.approx(2 * 9 / figures["seconds"])
    assert figures["seconds"] == pytest.approx(figures["first_token_seconds"] + 8 * figures["step_seconds"])
    assert (
        0 < figures["seconds_min"] <= figures["seconds"] <= figures["seconds_max"]
        and figures["compile_seconds"] > 0
    )
    read = figures["bytes_per_step"] / figures["step_seconds"]
    assert figures["share_of_bandwidth"] == pytest.approx(read / figures["copy_bytes_per_second"])
    # One layer of width 8: 12 D^2 + 13 D, two LayerNorm vectors, 128 rows of 8 (of positions one is read, uncounted);
    # 2 rows of 16 cached positions, keys and values.
    assert figures["bytes_per_step"] == 4 * (12 * 64 + 13 * 8 + 16 + 128 * 8 + 2 * 2 * 16 * 8 + 2)


def test_texts_longer_than_the_context_are_refused(capsys: pytest.CaptureFixture) -> None:
    bench(*TINY, "--prompt", "10", "--new", "7", code=2, what="generate")
    assert "prompt = 10, new = 7: at least 1 and 2 are needed, and together at most the context of 16" in (
        capsys.readouterr().err
    )
