"""Compares the time of a training step with that of PyTorch, on the CPU of this machine.

    python tools/bench_train.py --torch-python /tmp/torch-env/bin/python
    python tools/bench_train.py --torch-python /tmp/torch-env/bin/python --shapes 12x12x768:1024:50304:2

Both train GPT-2 with random weights on random tokens, in float32: forward pass, loss, backward pass, clipping
by the global norm and AdamW. The model in PyTorch is built as nanoGPT builds it: fused attention, exact GELU,
a tied head, logits of all positions at once, and fused AdamW. It runs as it is written (eager) and compiled
by torch.compile. Each program is a process of its own, and waits while another one runs. The programs take
turns, so that what else happens on the machine meets all of them. torch is no dependency of jaxgpt and lives
in another environment.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxgpt.huge_pages import with_huge_pages

OURS = """
import sys, jax, numpy as np
from jaxgpt.config import GPTConfig, MeshConfig
from jaxgpt.parallel import mesh_of, place_rows
from jaxgpt.text.batch import shifted
from jaxgpt.verbs.bench_train import compiled_step
layers, heads, width, context, vocab, batch = map(int, sys.argv[1:7])
config = GPTConfig(layers=layers, heads=heads, width=width, context=context, vocab=vocab, dropout=0.0)
mesh = mesh_of(MeshConfig())
state, step = compiled_step(config, mesh, blocks='auto', keeps='all', loss_chunk=0)
tokens = np.random.default_rng(0).integers(0, vocab, (batch, context + 1), np.int32)
rows = place_rows(lambda first, stop: shifted(tokens[first:stop]), batch, mesh)
def one():
    global state
    state, _ = jax.block_until_ready(step(state, rows))
"""
TORCH = """
import sys, torch
from torch import nn
from torch.nn import functional as F
layers, heads, width, context, vocab, batch = map(int, sys.argv[1:7])
torch.set_num_threads(int(sys.argv[8]))
torch.manual_seed(0)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, heads, -1).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(width, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))

class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
    def forward(self, ids, targets):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, vocab), targets.view(-1))

model = GPT()
run = torch.compile(model) if sys.argv[7] == "compiled" else model
decayed = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() < 2]
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
ids = torch.randint(0, vocab, (batch, context + 1))
def one():
    loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
"""
LOOP = """
import resource, sys, time
for line in sys.stdin:
    one()  # memory that was given back is dear to get again, and a training step follows upon another
    start = time.perf_counter()
    for _ in range(int(line)):
        one()
    seconds = time.perf_counter() - start
    print("took", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Measure the programs in turn at each shape, and print a line of JSON for each."""

    torch_python: Path
    """Python of an environment that has torch."""
    shapes: tuple[str, ...] = (
        "6x6x384:256:65:8",
        "4x4x128:64:50304:12",
        "12x12x768:256:50304:4",
        "12x12x768:1024:50304:2",
    )
    """Layers x heads x width : context : vocabulary : sequences in a batch."""
    programs: tuple[str, ...] = ("jaxgpt", "torch:eager", "torch:compiled")
    """What is compared."""
    turns: int = 7
    """Number of timed turns of each program, after one that compiles and one that warms up."""
    seconds: float = 2.0
    """About how long a turn takes. A turn is at least one step, after one that is not timed."""
    torch_huge_pages: bool = False
    """Whether PyTorch's memory lies in huge pages as jaxgpt's does, which its users do not ask for."""


def main() -> None:
    """Time the programs in turn at each shape, and print the figures."""
    args = tyro.cli(Compare, description=__doc__)
    for shape in args.shapes:
        _compare(args, shape)


def _compare(args: Compare, shape: str) -> None:
    size, context, vocab, batch = shape.split(":")
    numbers = [*size.split("x"), context, vocab, batch]
    workers = {name: _start(name, args, numbers) for name in args.programs}
    steps = dict.fromkeys(workers, 1)
    times: dict[str, list[float]] = {name: [] for name in workers}
    peaks: dict[str, float] = {}
    for turn in range(2 + args.turns):
        for name, worker in workers.items():
            seconds, peaks[name] = _timed(worker, steps[name])
            times[name].append(seconds / steps[name])
            if turn == 1:
                steps[name] = max(1, round(args.seconds / seconds))
    medians = {name: statistics.median(taken[2:]) for name, taken in times.items()}
    for name, taken in times.items():
        figures = {
            "shape": shape,
            "program": name,
            "step_seconds": round(medians[name], 4),
            "step_seconds_min": round(min(taken[2:]), 4),
            "step_seconds_max": round(max(taken[2:]), 4),
            "tokens_per_second": round(int(batch) * int(context) / medians[name]),
            "speed_against_the_first": round(medians[args.programs[0]] / medians[name], 3),
            "peak_mib": round(peaks[name] / 1024),
        }
        print(json.dumps(figures), flush=True)
    for worker in workers.values():
        worker.communicate()


def _start(name: str, args: Compare, numbers: list[str]) -> subprocess.Popen[str]:
    program, _, way = name.partition(":")
    python, source = (sys.executable, OURS) if program == "jaxgpt" else (str(args.torch_python), TORCH)
    threads = str(len(os.sched_getaffinity(0)))
    command = [python, "-c", source + LOOP, *numbers, way, threads]
    huge = with_huge_pages(os.environ) if program == "jaxgpt" or args.torch_huge_pages else None
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=huge)


def _timed(worker: subprocess.Popen[str], steps: int) -> tuple[float, float]:
    """Return the seconds that a worker takes for so many steps, and the most memory it has had, in KiB."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    answer = worker.stdout.readline().split()
    if not answer:
        sys.exit(f"a worker has ended: {worker.args!r:.200}")
    return float(answer[1]), float(answer[2])


if __name__ == "__main__":
    main()
