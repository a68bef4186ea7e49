"""A choice of parameters divides them, and what was divided comes together again."""

import jax
import numpy as np
import pytest

from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import Params
from jaxgpt.training.trainable import Chosen, combine, partition


@pytest.mark.parametrize(
    "chosen",
    [
        Chosen(),
        Chosen(pattern="h/.*", layers=(0, 3)),
        Chosen(pattern="h/.*", layers=(2, 3)),
        Chosen(pattern="h/(attn|ln_1)/.*|wte/.*", layers=(1, 2)),
        Chosen(pattern="ln_f/scale"),
    ],
    ids=str,
)
def test_parts_make_the_whole_again(params: Params, chosen: Chosen) -> None:
    trainable, frozen = partition(params, chosen)
    again = combine(trainable, frozen, chosen)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (trainable, frozen, params)]
    assert sizes[0] + sizes[1] == sizes[2] and sizes[0] > 0


def test_layers_cut_the_leaves_of_the_blocks_alone(params: Params) -> None:
    trainable, frozen = partition(params, Chosen(pattern="h/mlp/c_fc/kernel|ln_f/bias", layers=(1, 2)))
    kernel = params["h"]["mlp"]["c_fc"]["kernel"]
    np.testing.assert_array_equal(trainable["h"]["mlp"]["c_fc"]["kernel"], kernel[1:2])
    np.testing.assert_array_equal(frozen["h"]["mlp"]["c_fc"]["kernel"], kernel[np.array([0, 2])])
    assert trainable["ln_f"].keys() == {"bias"} and frozen["ln_f"].keys() == {"scale"}


def test_a_choice_of_nothing_is_refused(params: Params) -> None:
    with pytest.raises(ConfigError, match=r"no parameter is called 'head/.*ln_f/scale"):
        partition(params, Chosen(pattern="head/.*"))
    for layers in ((0, 4), (2, 2), (-1, 2)):
        with pytest.raises(ConfigError, match="the model has layers 0 to 2"):
            partition(params, Chosen(pattern="h/.*", layers=layers))
