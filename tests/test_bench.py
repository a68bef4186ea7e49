"""`jaxgpt bench`: its figures against numbers worked out by hand, on clocks of our own."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from command_line import exit_code
from jax.sharding import Mesh

from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.parallel import mesh_of
from jaxgpt.verbs import bench_compile, bench_generate, bench_train

TINY = GPTConfig(layers=1, heads=2, width=8, context=16, vocab=50)
SIZES = [
    *("--layers", "1", "--heads", "2", "--width", "8", "--context", "16"),
    *("--vocab", "50", "--batch", "8", "--steps", "2"),
]


def bench(*args: str, code: int = 0, what: str = "train") -> None:
    assert exit_code("bench", what, *args) == code


def clock(*spans: float) -> Any:
    """A `time` that tells one moment after another, `spans` seconds apart."""
    moments = iter(itertools.accumulate(spans, initial=100.0))
    return SimpleNamespace(perf_counter=lambda: next(moments))


def apart(spans: Iterable[float]) -> list[float]:
    """Spans that are measured one by one: between two of them nothing passes that would count."""
    return [part for span in spans for part in (span, 1000.0)]


@pytest.mark.parametrize("what", ["train", "generate"])
@pytest.mark.parametrize("flag", ["--batch", "--steps"])
def test_nothing_to_time_is_said_at_once(what: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench(*SIZES, flag, "0", what=what, code=2)
    assert f"error: {flag} = 0: it must be greater than 0" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_in_the_end_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(*SIZES, "--json", str(tmp_path / "none" / "a.json"), code=2)
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    bench(*SIZES, "--json", str(tmp_path), code=2)
    assert "it is a folder" in capsys.readouterr().err


@pytest.fixture
def mesh() -> Mesh:
    return mesh_of(MeshConfig(data=2, fsdp=2, tensor=2))


def test_training_is_timed_without_its_first_steps(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step takes 7 seconds, two warm-up steps 9 each, and those that count 0.5, 2 and 0.25."""
    monkeypatch.setattr(bench_train, "time", clock(*apart([7.0, 9.0, 9.0, 0.5, 2.0, 0.25])))
    measured = []

    def matmul_flops(config: GPTConfig, device: jax.Device) -> float:
        measured.append((config, device))
        return 1e6

    monkeypatch.setattr(bench_train, "measured_matmul_flops", matmul_flops)
    monkeypatch.setattr(bench_train, "peak_flops", lambda kind, dtype: 4e6)
    figures = bench_train.train_figures(TINY, mesh, batch=8, steps=3)
    assert figures["first_step_seconds"] == 7
    assert figures["step_seconds"] == 0.5
    assert (figures["step_seconds_min"], figures["step_seconds_max"]) == (0.25, 2)
    assert figures["tokens_per_second"] == 256  # 8 sequences of 16 tokens in half a second
    # A token takes 6 x (888 parameters of the block and the last LayerNorm + 50 x 8 of the head) + 12 x 8 x
    # 16 = 9,264 FLOPs; 256 of them a second on eight devices, of which each can do a million, or four by its
    # data sheet.
    assert figures["utilisation_of_matmul"] == pytest.approx(9264 * 256 / 8e6)
    assert figures["utilisation_of_peak"] == pytest.approx(9264 * 256 / 32e6)
    assert (figures["devices"], figures["device"]) == (8, "cpu")
    assert measured == [(TINY, jax.devices()[0])]


def test_products_are_measured_on_a_device_of_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(
        bench_train, "measured_matmul_flops", lambda config, device: devices.append(device) or 1.0
    )
    figures = bench_train.train_figures(TINY, mesh_of(MeshConfig(), jax.devices()[5:6]), batch=1, steps=1)
    assert devices == [jax.devices()[5]] and figures["devices"] == 1


def test_generation_is_timed_from_the_first_token_to_the_last(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 20 seconds of compiling: first tokens after 1, 2 and 0.5 seconds, the last after 9, 6 and 10."""
    runs = [(5.0, 15.0), (1.0, 8.0), (2.0, 4.0), (0.5, 9.5)]
    monkeypatch.setattr(bench_generate, "time", clock(*[part for run in runs for part in (*run, 1000.0)]))
    monkeypatch.setattr(bench_generate, "copy_bandwidth", lambda device: 1000.0)
    figures = bench_generate.generate_figures(TINY, mesh, batch=2, prompt=5, new=9, repeats=3)
    assert figures["first_token_seconds"] == 1
    assert (figures["seconds_min"], figures["seconds"], figures["seconds_max"]) == (6, 9, 10)
    assert figures["tokens_per_second"] == 2  # two texts of nine tokens in nine seconds
    assert figures["step_seconds"] == 1  # eight tokens in the eight seconds after the first
    assert figures["compile_seconds"] == 11
    assert figures["copy_bytes_per_second"] == 1000
    assert figures["share_of_bandwidth"] == pytest.approx(figures["bytes_per_step"] / 1000)


# Of a layer of width 8 and the last LayerNorm: LayerNorms 6 x 8; c_attn 8 x 3 x 8 and a bias of 3 x 8; c_proj
# 8 x 8 and 8; c_fc 8 x 32 and 32; c_proj 32 x 8 and 8. The head is 128 rows of 8, the cache keys and values
# of 2 rows x 2 heads x 16 positions x 4, and 2 lengths. Of the positions, and of an embedding that is not the
# head too, single rows are read.
WHOLE = 48 + (192 + 24) + (64 + 8) + (256 + 32) + (256 + 8) + 1024 + 512 + 2
HALVES = 48 + (96 + 12) + (32 + 8) + (128 + 16) + (128 + 8) + 512 + 256 + 2


@pytest.mark.parametrize(
    ("sizes", "tied", "numbers"),
    [
        # Eight copies: each device reads all of its own.
        pytest.param(MeshConfig(), True, WHOLE, marks=pytest.mark.exhaustive),
        (MeshConfig(tensor=2), True, HALVES),
        (MeshConfig(), False, WHOLE),
    ],
)
def test_the_bytes_of_a_step_are_those_that_one_device_reads(
    sizes: MeshConfig, tied: bool, numbers: int
) -> None:
    config = GPTConfig(layers=1, heads=2, width=8, context=16, vocab=50, tied_head=tied)
    figures = bench_generate.generate_figures(config, mesh_of(sizes), batch=2, prompt=5, new=9, repeats=1)
    assert figures["bytes_per_step"] == 4 * numbers


def test_the_bandwidth_is_that_of_the_fastest_copy_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of six copies compiles and does not count; each reads and writes 4096 bytes."""
    device, told, used = jax.devices()[3], clock(*apart([0.01, 1.0, 0.5, 0.25, 2.0, 1.0])), set()

    def perf_counter() -> float:
        used.add(jax.config.jax_default_device)
        return told.perf_counter()

    monkeypatch.setattr(bench_generate, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(bench_generate, "COPIED", 4096)
    assert bench_generate.copy_bandwidth(device) == 2 * 4096 / 0.25
    assert used == {device}


@pytest.mark.parametrize("what", ["train", "generate"])
def test_figures_are_printed_and_written(what: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lengths = ["--prompt", "5", "--new", "9"] if what == "generate" else []
    bench(*SIZES, *lengths, "--json", str(tmp_path / "bench.json"), what=what)
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert GPTConfig(**figures["model"]) == TINY
    assert figures["tokens_per_second"] > 0 and figures["batch"] == 8 and figures["devices"] == 8
    out = capsys.readouterr().out
    assert all(name in out for name in figures if name != "model")
    assert figures.get("utilisation_of_peak") is None  # no data sheet says anything of this CPU
    assert what == "generate" or "unknown" in out


def test_a_preset_gives_the_model_and_sizes_change_it(tmp_path: Path) -> None:
    bench("--preset", "nano", *SIZES, "--steps", "1", "--json", str(tmp_path / "bench.json"))
    assert json.loads((tmp_path / "bench.json").read_text())["model"]["vocab"] == 50


def test_a_batch_that_the_devices_do_not_divide_is_refused(capsys: pytest.CaptureFixture) -> None:
    bench(*SIZES, "--batch", "7", code=2)
    assert "does not divide" in capsys.readouterr().err


def test_texts_longer_than_the_context_are_refused(capsys: pytest.CaptureFixture) -> None:
    bench(*SIZES, "--prompt", "10", "--new", "7", code=2, what="generate")
    assert "prompt = 10, new = 7: prompt must be at least 1, new at least 2, and their sum at most 16" in (
        capsys.readouterr().err
    )


def test_data_says_how_fast_a_text_becomes_tokens_and_batches(tmp_path: Path) -> None:
    text, file = tmp_path / "a.txt", tmp_path / "figures.json"
    text.write_text("The whale. " * 500)
    bench(*SIZES, "--vocab", "50257", "--text", str(text), "--json", str(file), what="data")
    figures = json.loads(file.read_text())
    assert figures["bytes"] == 5500 and figures["tokens"] == 1502  # "The", then " whale", "." and " The"
    assert figures["share_of_tiktoken"] == pytest.approx(
        figures["tiktoken_seconds"] / figures["prepare_seconds"]
    )
    assert figures["batch_tokens_per_second"] == pytest.approx(8 * 16 / figures["batch_seconds"])


def test_compile_starts_twice_with_each_folder_of_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it starts is the same model; the second start finds what the first one kept."""
    started: list[list[str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        kept = Path(env["JAX_COMPILATION_CACHE_DIR"])
        seconds = 1.0 if kept.exists() else 8.0
        kept.mkdir(exist_ok=True)
        started.append(command[3:])
        figures = {"first_step_seconds": seconds, "compile_seconds": seconds + 1}
        Path(command[-1]).write_text(json.dumps(figures))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench_compile.subprocess, "run", run)
    file = tmp_path / "figures.json"
    bench(*SIZES, "--int8", "--json", str(file), what="compile")
    assert json.loads(file.read_text()) == {
        "train_first_step_seconds_cold": 8.0,
        "train_first_step_seconds_kept": 1.0,
        "generate_compile_seconds_cold": 9.0,
        "generate_compile_seconds_kept": 2.0,
    }
    assert [command[:2] for command in started] == [
        ["bench", what] for what in ("train",) * 2 + ("generate",) * 2
    ]
    assert {"--layers=1", "--width=8", "--vocab=50", "--batch=8", "--int8", "--mesh.fsdp=1"} <= set(
        started[0]
    )


def test_compile_says_which_start_failed_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = SimpleNamespace(returncode=2, stderr="first\nerror: it went wrong\n")
    monkeypatch.setattr(bench_compile.subprocess, "run", lambda *_, **__: failed)
    bench(*SIZES, what="compile", code=70)
    said = capsys.readouterr().err
    assert "bench train ended with 2" in said and "error: it went wrong" in said


@pytest.mark.exhaustive
def test_a_second_start_compiles_less(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    bench(
        "--layers=2",
        "--heads=2",
        "--width=32",
        "--context=64",
        "--prompt=8",
        "--new=8",
        "--json",
        str(file),
        what="compile",
    )
    figures = json.loads(file.read_text())
    for name in ("train_first_step_seconds", "generate_compile_seconds"):
        assert figures[f"{name}_kept"] < figures[f"{name}_cold"]
