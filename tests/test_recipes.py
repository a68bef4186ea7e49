"""The recipes in configs/: they run on as many devices as the comment at their top says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.config import load_recipe, preset_names

CONFIGS = Path(__file__).parent.parent / "configs"
LARGEST = 32  # devices that any recipe names
# What `jaxgpt pretrain` asks of a mesh before it trains: the batch divides over it, and every parameter does.
FITS = """
import json, jax
from jaxgpt.config import load_recipe
from jaxgpt.errors import ConfigError
from jaxgpt.model.gpt import define
from jaxgpt.parallel import check_batch, mesh_of, shardings

def problem(name, count):
    config = load_recipe(name)
    try:
        mesh = mesh_of(config.mesh, jax.devices()[:count])
        check_batch(config.batch, mesh)
        shardings(jax.eval_shape(define(config.model).init, jax.random.key(0)), mesh)
    except ConfigError as error:
        return f"{name} on {count} devices: {error}"

print(json.dumps([problem(*pair) for pair in json.loads(input())]))
"""


def counts_of(name: str) -> list[int]:
    """The numbers of devices that the line `# Hardware:` of a recipe names; one where it names none."""
    line = re.search("^# Hardware: (.*)", (CONFIGS / f"{name}.toml").read_text(), re.MULTILINE)
    assert line, f"{name} says nothing of the hardware it is for"
    assert "or more" not in line[1], "a number of devices that nobody named cannot be tried"
    named = re.search(r"((?:\d+, )*(?:\d+ or )?\d+) (?:GPUs|TPU chips)", line[1])
    return [int(count) for count in re.findall(r"\d+", named[1])] if named else [1]


def test_the_counts_of_devices_are_read_from_the_comments() -> None:
    assert counts_of("nano") == [1]
    assert counts_of("gpt2") == counts_of("gpt2-medium") == counts_of("gpt2-large") == [8]
    assert counts_of("gpt2-xl") == [8, 16, 32]


def test_every_recipe_runs_on_as_many_devices_as_it_says() -> None:
    pairs = [(name, count) for name in preset_names() for count in counts_of(name)]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={LARGEST}"}
    command = [sys.executable, "-c", FITS]
    done = subprocess.run(command, input=json.dumps(pairs), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [problem for problem in json.loads(done.stdout) if problem] == []


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_a_step_of_the_public_sizes_sees_half_a_million_tokens(name: str) -> None:
    assert load_recipe(name).tokens_per_step == 512 * 1024
