"""The checks of `jaxgpt info --check`: silent where all is sound, and each able to find something."""

import contextlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxgpt.doctor import compiler, machine, packages
from jaxgpt.doctor.check import Finding

# What the wheels of jaxgpt, jax 0.10.1 and its plugins say of themselves, shortened.
REQUIRES = {
    "jaxgpt": [
        "jax<0.10.2,>=0.10.1; python_version < '3.12'",
        "jax<0.10.2,>=0.10.1; python_version >= '3.12'",
        "flax<0.13,>=0.12",
        "tyro<2,>=1.0",
        "matplotlib>=3.10; extra == 'plots'",
        "jax[cuda12]; extra == 'cuda12'",
        "jax[cuda13]; extra == 'cuda13'",
        "jax[tpu]; extra == 'tpu'",
    ],
    "jax": [
        "jaxlib<=0.10.1,>=0.10.1",
        'jaxlib==0.10.0; extra == "ci"',
        'libtpu==0.0.41.*; extra == "tpu"',
        'requests; extra == "tpu"',
        'jaxlib<=0.10.1,>=0.10.1; extra == "cuda12"',
        'jax-cuda12-plugin[with-cuda]<=0.10.1,>=0.10.1; extra == "cuda12"',
        'jax-cuda13-plugin[with-cuda]<=0.10.1,>=0.10.1; extra == "cuda13"',
    ],
    "jax-cuda12-plugin": ["jax-cuda12-pjrt==0.10.1"],
    "jax-cuda13-plugin": [
        "jax-cuda13-pjrt==0.10.1",
        'nvidia-cudnn-cu13<10.0,>=9.12; sys_platform == "linux" and extra == "with-cuda"',
    ],
}
SOUND = {"jaxgpt": "0.1.0", "jax": "0.10.1", "jaxlib": "0.10.1", "flax": "0.12.8", "tyro": "1.0.17"}
CUDA = {"jax-cuda13-plugin": "0.10.1", "jax-cuda13-pjrt": "0.10.1", "nvidia-cudnn-cu13": "9.12.1"}

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Replace what is installed by these versions, a name and a version each; None takes one away."""

    def install(changes: dict[str, str | None]) -> None:
        def version(name: str) -> str:
            if (found := (SOUND | changes).get(name)) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, "version", version)
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES.get(name))

    return install


def test_this_installation_is_sound() -> None:
    """Whoever runs the tests has one of the supported pairs."""
    check = packages.check_packages()
    assert check.findings == []
    assert f"jax {jax.__version__}" in check.result


@pytest.mark.parametrize("more", [{}, CUDA, {"libtpu": "0.0.41.1"}, CUDA | {"nvidia-cudnn-cu13": None}])
def test_versions_that_fit_are_no_finding(install: Install, more: dict[str, str | None]) -> None:
    install(more)
    assert packages.check_packages().findings == []


@pytest.mark.parametrize(
    ("changes", "what", "fix"),
    [
        (
            {"jax": "0.10.2"},
            "jax is 0.10.2, and jaxgpt 0.1.0 needs jax<0.10.2,>=0.10.1",
            "jax<0.10.2,>=0.10.1",
        ),
        ({"flax": "0.13.1"}, "flax is 0.13.1, and jaxgpt 0.1.0 needs flax<0.13,>=0.12", "flax<0.13,>=0.12"),
        ({"jaxlib": "0.10.0"}, "jaxlib is 0.10.0, and jax 0.10.1 needs", "jaxlib<=0.10.1,>=0.10.1"),
        ({"tyro": None}, "tyro is not installed, and jaxgpt 0.1.0 needs", "tyro<2,>=1.0"),
        ({"libtpu": "0.0.40"}, "libtpu is 0.0.40, and jax 0.10.1 needs", "libtpu==0.0.41.*"),
        (
            CUDA | {"jax-cuda13-plugin": "0.10.0"},
            "jax-cuda13-plugin is 0.10.0, and jax 0.10.1 needs",
            "jax-cuda13-plugin<=0.10.1,>=0.10.1",
        ),
        (
            CUDA | {"jax-cuda13-pjrt": None},
            "jax-cuda13-pjrt is not installed, and jax-cuda13-plugin 0.10.1 needs",
            "jax-cuda13-pjrt==0.10.1",
        ),
        (
            CUDA | {"nvidia-cudnn-cu13": "9.1"},
            "nvidia-cudnn-cu13 is 9.1, and jax-cuda13-plugin 0.10.1 needs",
            "nvidia-cudnn-cu13<10.0,>=9.12",
        ),
    ],
)
def test_versions_that_do_not_fit_are_found(
    install: Install, changes: dict[str, str | None], what: str, fix: str
) -> None:
    install(changes)
    check = packages.check_packages()
    assert [finding.what for finding in check.findings] == [check.findings[0].what]
    assert check.findings[0].what.startswith(what)
    assert check.findings[0].fix == f"pip install '{fix}'"
    assert check.result.endswith("they do not all fit")


def test_two_plugins_for_cuda_are_one_too_many(install: Install) -> None:
    install(CUDA | {"jax-cuda12-plugin": "0.10.1", "jax-cuda12-pjrt": "0.10.1"})
    (finding,) = packages.check_packages().findings
    assert finding.what.startswith("jax-cuda12-plugin and jax-cuda13-plugin are both installed")
    assert finding.fix == "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt"


def test_a_checkout_that_is_not_installed_is_found(install: Install) -> None:
    install({"jaxgpt": None})
    (finding,) = packages.check_packages().findings
    assert "jaxgpt is not installed as a package" in finding.what and finding.fix == "pip install ."
    assert packages.bounds_of("jax") == "jax"


def test_the_program_that_jaxlib_0_10_2_miscompiles_is_right_here() -> None:
    for device in jax.devices()[::7]:
        check = compiler.check_results(device)
        assert check.findings == [] and "32,769 rows computed on cpu equal NumPy's" in check.result


@pytest.mark.parametrize(
    ("row", "supported", "fix"),
    [
        (compiler.ROWS - 1, "jax<0.2", "pip install 'jax<0.2'"),
        (5, "jax>=0.10", "export XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="),
    ],
)
def test_a_single_wrong_row_is_found(
    row: int, supported: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that mends it: another version, unless this one is among those that are supported."""
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda function: lambda rows: jit(function)(rows).at[row].add(1))
    monkeypatch.setattr(compiler, "bounds_of", lambda package: supported)
    check = compiler.check_results(jax.devices()[0])
    assert f"row {row} of 32769 is " in check.findings[0].what
    assert check.findings[0].fix.startswith(fix)
    assert check.result == "1 of 32,769 rows are wrong on cpu"


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install) -> Path:
    """A machine without accelerators, whose device files are those that a test makes."""
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(machine, "DEVICES", tmp_path / "dev")
    monkeypatch.setattr(machine, "PCI_DEVICES", tmp_path / "pci")
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path / "driver")
    install({})
    return tmp_path


def driver(folder: Path, version: str) -> None:
    first = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build"
    (folder / "driver").write_text(f"{first}\nGCC version:  gcc version 12.2.0\n")


def found(platform: str = "cpu", asked: str | None = None) -> list[Finding]:
    return machine.check_accelerators(platform, asked).findings


def test_a_machine_without_accelerators_may_run_on_cpu(devices: Path) -> None:
    assert machine.check_accelerators("cpu", None).result == "JAX runs on CPU, and no accelerator is here"
    assert found() == []


@pytest.mark.parametrize(
    ("file", "version", "fix"),
    [
        ("nvidia0", "580.65.06", "pip install 'jaxgpt[cuda13]'"),
        ("nvidia0", "570.124.06", "pip install 'jaxgpt[cuda12]'"),
        ("nvidia1", None, "pip install 'jaxgpt[cuda13]'"),
        ("dxg", None, "pip install 'jaxgpt[cuda13]'"),
    ],
)
def test_a_gpu_without_its_plugin_is_found(devices: Path, file: str, version: str | None, fix: str) -> None:
    (devices / "dev" / file).touch()
    if version:
        driver(devices, version)
    (finding,) = found()
    assert (
        "an NVIDIA GPU is here, but JAX runs on CPU because its CUDA plugin is not installed" in finding.what
    )
    assert finding.fix == fix


def test_every_extra_that_is_advised_exists() -> None:
    extras = importlib.metadata.metadata("jaxgpt").get_all("Provides-Extra")
    assert extras is not None and {"cuda12", "cuda13", "tpu"} <= set(extras)


def test_a_gpu_whose_plugin_does_not_start_is_found(devices: Path, install: Install) -> None:
    (devices / "dev" / "nvidia0").touch()
    install(CUDA)
    (finding,) = found()
    assert finding.what == "an NVIDIA GPU and jax-cuda13-plugin are here, but JAX runs on CPU"
    assert finding.fix.startswith("JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()'")
    driver(devices, "570.124.06")
    (finding,) = found()
    assert "its driver 570 is too old for CUDA 13" in finding.what
    assert finding.fix.endswith("pip install 'jaxgpt[cuda12]'")


def tpu_by_vfio(folder: Path) -> None:
    (folder / "dev" / "vfio").mkdir()
    (folder / "dev" / "vfio" / "0").touch()
    (folder / "pci" / "0000:00:05.0").mkdir(parents=True)
    (folder / "pci" / "0000:00:05.0" / "vendor").write_text("0x1ae0\n")


@pytest.mark.parametrize("file", ["accel0", "vfio"])
def test_a_tpu_that_jax_does_not_use_is_found(devices: Path, install: Install, file: str) -> None:
    (devices / "dev" / file).touch() if file == "accel0" else tpu_by_vfio(devices)
    (finding,) = found()
    assert "a TPU is here, but JAX runs on CPU because libtpu is not installed" in finding.what
    assert finding.fix == "pip install 'jaxgpt[tpu]'"
    install({"libtpu": "0.0.41"})
    (finding,) = found()
    assert "a TPU and libtpu 0.0.41 are here" in finding.what
    assert finding.fix.startswith("JAX_PLATFORMS=tpu python -c")


def test_a_network_card_of_google_or_a_device_under_vfio_is_no_tpu(devices: Path) -> None:
    tpu_by_vfio(devices)
    (devices / "dev" / "vfio" / "0").unlink()
    assert found() == []
    (devices / "dev" / "vfio" / "0").touch()
    (devices / "pci" / "0000:00:05.0" / "vendor").write_text("0x10de\n")
    assert found() == []


def test_libtpu_without_a_tpu_is_found(devices: Path, install: Install) -> None:
    install({"libtpu": "0.0.41"})
    (finding,) = found()
    assert "no TPU is to be seen" in finding.what and finding.fix.endswith("export JAX_PLATFORMS=cpu")


def test_tensorflow_for_tpus_beside_jax_is_found(devices: Path, install: Install) -> None:
    tpu_by_vfio(devices)
    install({"libtpu": "0.0.41", "tensorflow-tpu": "2.20.0"})
    (finding,) = found()
    assert "tensorflow-tpu is installed beside JAX" in finding.what
    assert finding.fix.startswith("pip uninstall -y tensorflow-tpu && pip install --force-reinstall")


@pytest.mark.parametrize(
    ("platform", "asked"), [("tpu", None), ("gpu", ""), ("cpu", "cpu"), ("cpu", "cpu,cuda")]
)
def test_who_uses_the_accelerator_or_asks_for_the_cpu_gets_no_finding(
    devices: Path, install: Install, platform: str, asked: str | None
) -> None:
    (devices / "dev" / "nvidia0").touch()
    install({"libtpu": "0.0.41"})
    assert found(platform, asked) == []
    assert len(found("cpu", "")) == 2


def device(limit: float | None, used: float = 0) -> Any:
    stats = None if limit is None else {"bytes_limit": int(limit), "bytes_in_use": int(used)}
    return SimpleNamespace(id=3, memory_stats=lambda: stats)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Set the host's free memory in kB, and what the container says of its limit."""
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "MEMORY_LIMIT", tmp_path / "memory.max")

    def memory(available: int, limit: str) -> None:
        (tmp_path / "meminfo").write_text(f"MemTotal:  99999999 kB\nMemAvailable:   {available} kB\n")
        (tmp_path / "memory.max").write_text(f"{limit}\n")

    return memory


def test_memory_that_suffices_is_told(memory: Callable[[int, str], None]) -> None:
    memory(8_000_000, "max")
    check = machine.check_memory([device(16e9, 1e9), device(None)])
    assert check.result == "the host has 8.2 GB free, device 3 has 15.0 GB free" and check.findings == []


def test_little_memory_is_found(memory: Callable[[int, str], None]) -> None:
    memory(1_000_000, "max")
    (finding,) = machine.check_memory([device(16e9)]).findings
    assert "the host has 1.0 GB of memory free" in finding.what
    memory(8_000_000, "1500000000")
    (finding,) = machine.check_memory([]).findings
    assert "the host has 1.5 GB of memory free" in finding.what
    memory(8_000_000, "9000000000")
    (finding,) = machine.check_memory([device(16e9, 15e9)]).findings
    assert "device 3 has 1.0 GB of memory free" in finding.what and "nvidia-smi" in finding.fix


def test_where_the_system_says_nothing_of_memory_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "none")
    check = machine.check_memory([])
    assert check.result == "the host has an unknown amount free" and check.findings == []


def test_little_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5.5e9))
    assert machine.check_disk(tmp_path) == ("disk", f"5.5 GB free in {tmp_path}", [])
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4.9e9))
    (finding,) = machine.check_disk(tmp_path).findings
    assert f"{tmp_path} has 4.9 GB of disk free" in finding.what and "--out-dir" in finding.fix


def test_on_cpu_attention_is_said_to_go_over_blocks() -> None:
    check = compiler.check_attention(jax.devices()[0])
    assert check.findings == [] and "attention is computed in blocks of queries" in check.result


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU by its name only; what would run on it runs on this machine's CPU."""
    monkeypatch.setattr(jax, "default_device", lambda device: contextlib.nullcontext())
    return SimpleNamespace(platform="gpu", compute_capability="9.0")


def test_a_gpu_on_which_cudnns_attention_does_not_run_is_found(gpu: Any) -> None:
    """On this machine it does not: JAX's own refusal is what is told."""
    (finding,) = compiler.check_attention(gpu).findings
    assert (
        "cuDNN's fused attention does not run here" in finding.what and "cuDNN" in finding.what.split(": ")[1]
    )
    assert finding.fix.startswith("pip install --upgrade 'jaxgpt[cuda13]'")


def test_a_gpu_on_which_cudnns_attention_runs_is_sound(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
        asked.append((q.dtype, options))
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    check = compiler.check_attention(gpu)
    assert check.findings == [] and "runs, forward and backward" in check.result
    assert asked == [("bfloat16", {"is_causal": True, "implementation": "cudnn"})]


def test_an_old_gpu_has_no_fused_attention_and_that_is_no_finding(gpu: Any) -> None:
    gpu.compute_capability = "7.5"
    check = compiler.check_attention(gpu)
    assert (
        check.findings == [] and "needs compute capability 8.0 or more, and this GPU has 7.5" in check.result
    )


def test_splash_attention_is_looked_for_on_tpus(monkeypatch: pytest.MonkeyPatch) -> None:
    tpu: Any = SimpleNamespace(platform="tpu")
    check = compiler.check_attention(tpu)
    assert check.findings == [] and check.result == "splash attention can be imported; it was not run"
    monkeypatch.setattr(compiler, "SPLASH", "jax.experimental.no_such_attention")
    (finding,) = compiler.check_attention(tpu).findings
    assert "splash attention does not import" in finding.what and finding.fix.startswith("pip install 'jax")
