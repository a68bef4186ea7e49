"""How new weights are drawn: GPT-2's distributions, and those that PyTorch's layers begin with."""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import pytest
from scipy.stats import kstest, norm, uniform

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import define
from jaxgpt.parallel import path_of

CONFIG = GPTConfig(vocab=125, context=64, layers=2, heads=2, width=48, mlp_width=80, classes=30)
UNTIED = dataclasses.replace(CONFIG, tied_head=False)


def drawn(config: GPTConfig) -> dict[str, np.ndarray]:
    """New parameters by their paths, without the rows that pad the vocabulary."""
    params = jax.device_get(jax.jit(define(config).init)(jax.random.key(0)))
    leaves = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {
        path: leaf[: config.vocab] if path in ("wte/embedding", "lm_head/embedding") else leaf
        for path, leaf in leaves.items()
    }


def expected(init: Literal["gpt2", "torch"]) -> dict[str, Any]:
    """The distribution of every parameter; a number where all are the same. Written down without the code."""
    even = {inputs: uniform(-(inputs**-0.5), 2 * inputs**-0.5) for inputs in (48, 80)}
    torch = init == "torch"
    small, added = norm(0, 0.02), norm(0, 0.02 / 2)  # 4 projections add to the stream: 0.02 / sqrt(4)
    inputs = {"attn/c_attn": 48, "attn/c_proj": 48, "mlp/c_fc": 48, "mlp/c_proj": 80}
    found: dict[str, Any] = {"ln_f/scale": 1.0, "ln_f/bias": 0.0}
    for name in ("ln_1", "ln_2"):
        found |= {f"h/{name}/scale": 1.0, f"h/{name}/bias": 0.0}
    for name, size in inputs.items():
        found[f"h/{name}/kernel"] = even[size] if torch else added if "c_proj" in name else small
        found[f"h/{name}/bias"] = even[size] if torch else 0.0
    for name in ("wte/embedding", "wpe/embedding"):
        found[name] = norm(0, 1) if torch else small
    for name in ("lm_head/embedding", "score/kernel"):
        found[name] = even[48] if torch else small
    return found


@pytest.mark.parametrize("init", ["gpt2", "torch"])
def test_every_parameter_is_drawn_from_its_distribution(init: Literal["gpt2", "torch"]) -> None:
    wanted, found = expected(init), drawn(dataclasses.replace(UNTIED, init=init))
    assert wanted.keys() == found.keys()
    for path, distribution in wanted.items():
        if isinstance(distribution, float):
            assert (found[path] == distribution).all(), path
        else:
            assert kstest(found[path].reshape(-1), distribution.cdf).pvalue > 0.01, path
