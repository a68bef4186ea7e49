"""`jaxgpt pretrain`: the plan that it shows before it trains."""

import re

import jax
import pytest

from jaxgpt.config import MeshConfig, TrainConfig, load_recipe
from jaxgpt.parallel import mesh_of
from jaxgpt.verbs import pretrain


@pytest.mark.parametrize(
    ("preset", "took", "absurd"), [("gpt2", "years", True), ("nano", "min", False), ("small", "min", False)]
)
def test_a_plan_whose_time_is_absurd_says_so_and_what_to_run_instead(
    preset: str, took: str, absurd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "measured_matmul_flops", lambda *_, **__: 1e11)
    recipe, mesh = load_recipe(preset), mesh_of(MeshConfig(data=1), jax.devices()[:1])
    assert isinstance(recipe, TrainConfig)
    plan, *more = pretrain.plan(recipe, mesh, recipe.tokens_per_step).splitlines()
    assert re.search(rf"roughly [\d.,]+ {took} at 40% of", plan), plan
    assert ["Ctrl-C" in line and "such as nano or small" in line for line in more] == [True] * absurd
