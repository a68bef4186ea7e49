"""The table of names covers every parameter once, in every shape of model."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxgpt.config import GPTConfig
from jaxgpt.model.gpt import Params, define
from jaxgpt.parallel import path_of
from jaxgpt.weights.names import TABLE, leaf_at, places, tree_of
from jaxgpt.weights.params import stored_params


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"qkv_bias": False},
        {"tied_head": False},
        {"position": "rotary"},
        {"layers": 11},
        {"classes": 3},
    ],
)
def test_every_parameter_has_its_tensors_and_every_tensor_its_place(config: GPTConfig, changes: dict) -> None:
    config = dataclasses.replace(config, **changes)
    shapes = jax.eval_shape(define(config).init, jax.random.key(0))
    by_path = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    found = places(config)
    assert {place.path for place in found} == set(by_path)
    assert len({place.name for place in found}) == len({place.openai for place in found}) == len(found)
    for path, shape in by_path.items():
        layers = [place.layer for place in found if place.path == path]
        assert layers == (list(range(config.layers)) if path.startswith("h/") else [None])
        size = sum(int(np.prod(place.shape)) for place in found if place.path == path)
        padded = path in ("wte/embedding", "lm_head/embedding")
        assert size + padded * (config.padded_vocab - config.vocab) * config.width == np.prod(shape)


def test_no_row_of_the_table_is_idle(config: GPTConfig) -> None:
    found = places(dataclasses.replace(config, tied_head=False, classes=2))
    assert {place.path for place in found} == {path for path, _, _ in TABLE}


def test_a_tensor_is_its_layer_of_the_leaf(config: GPTConfig, params: Params) -> None:
    tensors = stored_params(config, params).tensors
    np.testing.assert_array_equal(tensors["h.2.ln_2.bias"].read(), params["h"]["ln_2"]["bias"][2])
    np.testing.assert_array_equal(tensors["wte.weight"].read(), params["wte"]["embedding"][: config.vocab])
    queries = tensors["h.1.attn.c_attn.weight"].read()[:, : config.width]  # q, k and v stand side by side
    np.testing.assert_array_equal(queries, params["h"]["attn"]["c_attn"]["kernel"][1][:, 0])


def test_a_tree_is_its_leaves_by_path() -> None:
    tree = tree_of({"a/b": 1, "a/c/d": 2, "e": 3})
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": 3} and leaf_at(tree, "a/c/d") == 2
