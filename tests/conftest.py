"""Eight simulated CPU devices, strict JAX, and the small model most tests share."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# The tests compile thousands of tiny programs and run each only once or twice: with less optimisation, they
# take half the time. XLA's newer way to compile a fusion takes three times as long as its older one, which it
# has lost since. So only the older pair of versions, that of Python 3.11, can be told to use that one.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *["--xla_cpu_use_fusion_emitters=false"] * (sys.version_info < (3, 12)),
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
os.environ["JAX_PLATFORMS"] = "cpu"
# Many of these programs are compiled by both workers and by the processes that tests start. They share a
# cache, which lasts as long as this run. When XLA reads it, it prints an error about the tuning flags of the
# very machine it runs on; level 3 leaves that out.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="jaxgpt-compiled-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

import hypothesis
import jax
import numpy as np
import pytest
from small_runs import TABLES, saved_model

from jaxgpt.config import GPTConfig
from jaxgpt.language_model import LanguageModel
from jaxgpt.model.gpt import Params, define
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.training import devices

# The compiled programs stay alive: a million objects, which Python would look through again and again.
gc.freeze()
gc.set_threshold(100_000, 50, 100)
hypothesis.settings.register_profile("jaxgpt", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("jaxgpt")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell starts commands in the background with Ctrl-C ignored, and nohup ignores the end of the terminal.
# The tests that send these signals need them, there too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def one_speed() -> Iterator[None]:
    """The speed of matrix products is measured once, and not by each run that a test trains."""
    measured = devices.measured_matmul_flops
    known: dict[str, float] = {}

    def once(model: GPTConfig, device: jax.Device, *, seconds: float) -> float:
        if model.compute_dtype not in known:
            known[model.compute_dtype] = measured(model, device, seconds=seconds)
        return known[model.compute_dtype]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "measured_matmul_flops", once)
        yield


@pytest.fixture(scope="session")
def config() -> GPTConfig:
    """Three layers, sizes that differ from one another so that a swapped axis fails."""
    return GPTConfig(vocab=61, context=32, layers=3, heads=4, width=24, mlp_width=40, vocab_multiple=8)


@pytest.fixture(scope="session")
def params(config: GPTConfig) -> Params:
    """Its parameters, every one of them away from 0 and 1 so that each matters."""
    return shaken(jax.jit(define(config).init)(jax.random.key(0)))


@pytest.fixture(scope="session")
def tokens_BT(config: GPTConfig) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.vocab, (4, config.context), np.int32)


@pytest.fixture(scope="session")
def tables_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to train on."""
    path = tmp_path_factory.mktemp("text") / "tables.txt"
    path.write_text(TABLES)
    return path


@pytest.fixture(scope="session")
def bytes_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of bytes that can learn to write a few letters."""
    return saved_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """A model of bytes with 64 tokens of context, whose logits differ much."""
    config = GPTConfig(vocab=257, context=64, layers=1, heads=1, width=8)
    params = jax.jit(define(config).init)(jax.random.key(3))
    return LanguageModel(config, jax.tree.map(lambda leaf: leaf * 20, params), load_tokenizer("bytes"))


@pytest.fixture(scope="session")
def lm_folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is stored."""
    path = tmp_path_factory.mktemp("models") / "small"
    lm.save(path)
    return path


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    """The model that the server serves. It reads bytes, and its text depends on the position."""
    config = GPTConfig(vocab=257, context=192, layers=1, heads=2, width=16)
    params = jax.jit(define(config).init)(jax.random.key(0))
    moved = {"wpe": {"embedding": 100 * params["wpe"]["embedding"]}}
    return LanguageModel(config, params | moved, load_tokenizer("bytes"))


@jax.jit
def shaken(params: Params) -> Params:
    """Random numbers added to every parameter, except to the embedding's padding rows."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape) * (leaf != 0).any(-1, keepdims=True).astype(leaf.dtype)
        if leaf.ndim == 2 and leaf.shape[0] == 64
        else leaf + 0.1 * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)
