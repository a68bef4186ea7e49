"""Compares the tokens per second of the engine with those of other programs on the same machine.

    python tools/bench_generate.py --torch-python /tmp/torch-env/bin/python --batch 1
    python tools/bench_generate.py --torch-python /tmp/torch-env/bin/python --batch 8 \\
        --programs jaxgpt:float32 jaxgpt:int8 ctranslate2:float32 ctranslate2:int8

All decode greedily, with random weights of the same shape and random prompts. Each runs in a process of its
own, which waits while another one runs. torch, transformers and ctranslate2 are not dependencies of jaxgpt
and live in another environment. A run is timed from the prompts to the last token, and reading the prompts
counts.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

OURS = """
import dataclasses, sys, jax, numpy as np, jaxgpt
from jaxgpt.inference.engine import Engine
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.served import Served
numbers, preset, batch, prompt, new = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
int8 = numbers == "int8"
config = dataclasses.replace(jaxgpt.load_recipe(preset).model, compute_dtype="float32" if int8 else numbers)
params = jax.jit(jaxgpt.define(config).init)(jax.random.key(0))
engine = Engine(Served.of(config, params, int8=int8), slots=batch)
del params
tokens = np.random.default_rng(0).integers(0, config.vocab, (batch, prompt)).tolist()
requests = [Request(prompt=tuple(t), max_new_tokens=new, sampling=Sampling(temperature=0)) for t in tokens]
def generate():
    assert sum(new.token is not None for _, new in engine.run(requests)) == batch * new
"""
TORCH_MODEL = """
import sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
numbers, (layers, heads, width, context, vocab, batch, prompt, new) = sys.argv[1], map(int, sys.argv[2:])
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(
    n_layer=layers, n_head=heads, n_embd=width, n_positions=context, vocab_size=vocab)).eval()
tokens = torch.randint(0, vocab, (batch, prompt))
"""
TRANSFORMERS = (
    TORCH_MODEL
    + """
model = model.to(getattr(torch, numbers))
@torch.no_grad()
def generate():
    made = model.generate(tokens, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    assert made.shape == (batch, prompt + new)
"""
)
CTRANSLATE2 = (
    TORCH_MODEL
    + """
import tempfile, ctranslate2
from ctranslate2.converters.transformers import GPT2Loader
spec = GPT2Loader().get_model_spec(model)
spec.register_vocabulary([str(number) for number in range(vocab)])
spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
spec.validate()
spec.optimize(quantization=numbers)
with tempfile.TemporaryDirectory() as folder:
    spec.save(folder)
    generator = ctranslate2.Generator(folder, compute_type=numbers)
prompts = [[str(number) for number in row] for row in tokens.tolist()]
def generate():
    made = generator.generate_batch(
        prompts, max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False)
    assert [len(text.sequences_ids[0]) for text in made] == [new] * batch
"""
)
LOOP = """
for line in sys.stdin:
    generate()
    print("done", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Measure the programs in turn, and print a line of JSON for each."""

    torch_python: Path
    """Python of an environment that has torch and transformers, and ctranslate2 where it is compared."""
    programs: tuple[str, ...] = ("jaxgpt:float32", "transformers:float32")
    """What is compared: `jaxgpt`, `transformers` or `ctranslate2`, and the type of its weights."""
    preset: str = "gpt2"
    """Preset that gives the shape of the model."""
    batch: int = 1
    """Number of texts that are generated side by side."""
    prompt: int = 64
    """Number of tokens in each prompt."""
    new: int = 64
    """Number of tokens that are generated after each prompt."""
    repeat: int = 7
    """Number of timed runs of each, after one that compiles."""


def main() -> None:
    """Time the programs in turn, and print the figures."""
    from jaxgpt.config import load_recipe

    args = tyro.cli(Compare)
    model = load_recipe(args.preset).model
    work = [str(args.batch), str(args.prompt), str(args.new)]
    shape = [str(size) for size in (model.layers, model.heads, model.width, model.context, model.vocab)]
    workers = {}
    for name in args.programs:
        program, numbers = name.split(":")
        if program == "jaxgpt":
            command = [sys.executable, "-c", OURS + LOOP, numbers, args.preset, *work]
        else:
            source = {"transformers": TRANSFORMERS, "ctranslate2": CTRANSLATE2}[program]
            command = [str(args.torch_python), "-c", source + LOOP, numbers, *shape, *work]
        workers[name] = _start(command)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(1 + args.repeat):
        for name, worker in workers.items():
            times[name].append(_timed(worker))
    rates = {name: args.batch * args.new / statistics.median(seconds[1:]) for name, seconds in times.items()}
    for name, seconds in times.items():
        figures = {
            "program": name,
            "batch": args.batch,
            "prompt": args.prompt,
            "new": args.new,
            "tokens_per_second": round(rates[name], 1),
            "against_the_first": round(rates[name] / rates[args.programs[0]], 2),
            "seconds_min": round(min(seconds[1:]), 3),
            "seconds_max": round(max(seconds[1:]), 3),
        }
        print(json.dumps(figures))
    for worker in workers.values():
        worker.communicate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _timed(worker: subprocess.Popen[str]) -> float:
    """Return the seconds that a worker takes for one run."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    start = time.perf_counter()
    worker.stdin.write("go\n")
    worker.stdin.flush()
    if worker.stdout.readline() != "done\n":
        sys.exit(f"a worker has ended: {worker.args!r:.200}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
