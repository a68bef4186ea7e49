"""Makes the folder `book`: PyTorch's random numbers, and a small model of the book's that PyTorch trains.

    pip install torch==2.14.1 numpy
    python tests/golden/make_book.py

The model has the book's layers, made in the book's order after a seed, and is then computed in float64. It is
trained as in chapter 5 and as in appendix D for 15 epochs of 9 batches of 2, in the order of the book's data
loader, but without dropout. The program ran with the versions above on CPU.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SEED, V, T, D, HEADS, LAYERS = 123, 61, 16, 24, 4, 2
EPOCHS, BATCH, WINDOWS = 15, 2, 18
PEAK, START, END = 1e-3, 1e-5, 1e-5  # appendix D's learning rates


class LayerNorm(nn.Module):
    """The book's: the biased variance, and an epsilon of 1e-5."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) + self.shift


class Attention(nn.Module):
    """Causal attention of several heads; queries, keys and values have no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(D, D, bias=False) for _ in range(3))
        self.out = nn.Linear(D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            each(x).unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2)
            for each in (self.queries, self.keys, self.values)
        )
        future = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
        scores = (q @ k.transpose(2, 3)).masked_fill(future, -torch.inf) / math.sqrt(D // HEADS)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(approximate="tanh"), nn.Linear(4 * D, D))
        self.first, self.second = LayerNorm(), LayerNorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class GPT(nn.Module):
    """The book's model, with an output head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = LayerNorm(), nn.Linear(D, V, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions(torch.arange(T)))))


def random_numbers() -> dict[str, np.ndarray]:
    """Numbers of every kind, one after another from the same generator."""
    torch.manual_seed(SEED)
    return {
        "rand": torch.rand(3, 5).numpy(),
        "uniform": torch.empty(4, 5).uniform_(-0.3, 0.7).numpy(),
        "few_normal": torch.randn(3).numpy(),
        "more_normal": torch.randn(5, 9).numpy(),
        "last_normal": torch.randn(2).numpy(),
        "bernoulli": torch.empty(6, 7).bernoulli_(0.9).numpy(),
        "randperm": torch.randperm(11).numpy(),
        "seed": torch.empty((), dtype=torch.int64).random_().numpy(),
        **{f"linear_{name}": tensor.numpy() for name, tensor in nn.Linear(7, 3).state_dict().items()},
    }


def rate_of_appendix_d(step: int, steps: int, warm_up: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < warm_up:
        return START + step * (PEAK - START) / warm_up
    progress = (step - warm_up) / (steps - warm_up)
    return END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * progress))


def trained(windows: torch.Tensor, *, appendix_d: bool) -> dict[str, np.ndarray]:
    """The logits before training, the places of the batches, and what was measured at each step."""
    loader = DataLoader(TensorDataset(torch.arange(WINDOWS)), batch_size=BATCH, shuffle=True, drop_last=True)
    torch.manual_seed(SEED)
    model = GPT().double()
    first = model(windows[:BATCH, :-1]).detach().numpy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    steps = EPOCHS * len(loader)
    order, losses, norms, rates = [], [], [], []
    for _ in range(EPOCHS):
        for (places,) in loader:
            step, batch = len(losses), windows[places]
            if appendix_d:
                optimizer.param_groups[0]["lr"] = rate_of_appendix_d(step, steps, steps // 5)
            logits = model(batch[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            limit = 1.0 if appendix_d and step >= steps // 5 else math.inf
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), limit).item())
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            order.append(places.numpy())
            losses.append(loss.item())
    return {
        "logits": first,
        "order": np.array(order, np.int32),
        "loss": np.array(losses),
        "grad_norm": np.array(norms),
        "learning_rate": np.array(rates),
    }


def main() -> None:
    draw = np.random.default_rng(7)
    windows = np.minimum(draw.geometric(0.1, (WINDOWS, T + 1)), V - 1).astype(np.int32)
    found = {"windows": windows, **{f"random_{name}": value for name, value in random_numbers().items()}}
    for name, appendix_d in (("ch05", False), ("appendix_d", True)):
        measured = trained(torch.tensor(windows).long(), appendix_d=appendix_d)
        found |= {f"{name}_{key}": value for key, value in measured.items()}
    folder = Path(__file__).parent / "book"
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "expected.npz", **found)


if __name__ == "__main__":
    main()
