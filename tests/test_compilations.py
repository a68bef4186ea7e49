"""How many programs training, writing, scoring and serving compile: a start waits for each of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Counts what XLA compiles for each command, by the name of the program; and for requests like a server's.
SCRIPT = """
import collections, json, sys
import jax
folder = sys.argv[1]
counted, all_of_them = collections.Counter(), {}
def count(name, seconds, **more):
    if "backend_compile" in name:
        counted[str(more.get("fun_name"))] += 1
jax.monitoring.register_event_duration_secs_listener(count)
def done(what):
    all_of_them[what] = dict(counted)
    counted.clear()
from jaxgpt.cli import main
size = "--model.layers 2 --model.width 32 --model.context 64 --batch 4".split()
often = "--steps 6 --eval-every 2 --eval-batches 2 --sample-tokens 20 --checkpoint-every 3".split()
main(["pretrain", "nano", "--out-dir", f"{folder}/run", "--data.path", f"{folder}/text.txt", *size, *often])
done("train")
for what, prompt in (("write", "the"), ("write again", "the cat")):
    main(["generate", f"{folder}/run", prompt, "--max-new-tokens", "40"])
    done(what)
main(["evaluate", f"{folder}/run", "--data", f"{folder}/text.txt"])
done("score")
import jaxgpt
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
lm = jaxgpt.load(f"{folder}/run")
engine = Engine(Served.of(lm.config, lm.params), slots=4)
done("lay out")
asked = [Request(prompt=tuple(range(n)), max_new_tokens=n, seed=n, sampling=Sampling()) for n in range(1, 31)]
for _ in engine.run(asked):
    pass
done("serve 30")
for _ in engine.run(asked):
    pass
done("serve 30 again")
json.dump(all_of_them, open(f"{folder}/counted.json", "w"))
"""


@pytest.mark.slow
def test_each_command_compiles_a_bounded_number_of_programs(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 1000)
    one_device = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = os.environ | one_device | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    script = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert ended.returncode == 0, ended.stderr[-2000:]
    counted = json.loads((tmp_path / "counted.json").read_text())
    for name in ("train_step", "sums", "prefill", "decode"):  # one step, one evaluation, one sampler
        assert counted["train"][f"jit({name})"] == 1
    totals = {what: sum(each.values()) for what, each in counted.items()}
    assert totals["train"] <= 70
    assert totals["write"] <= 10
    assert totals["score"] <= 3
    assert totals["write again"] == totals["serve 30 again"] == 0
    # Prompts of up to 16 tokens and of up to 32, in groups of one, two and four.
    assert totals["serve 30"] <= 20
