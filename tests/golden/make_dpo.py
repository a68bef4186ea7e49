"""Makes the folder `dpo`: ten steps of AdamW of preference tuning (DPO) from the model in `training`.

    pip install torch==2.14.1 transformers==5.14.0 numpy
    python tests/golden/make_dpo.py

Six questions with random ids have a chosen and a rejected answer each, of different lengths, padded on the
right. The reference is a second model with the stored parameters. Everything is computed in float64. `sum`
adds up the log-probabilities of an answer's tokens and smooths the labels; `mean` takes their mean, without
smoothing. Weight decay applies to matrices and embeddings. The program ran with the versions above on CPU.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import GPT2LMHeadModel

STEPS, BETA = 10, 0.5
SMOOTHING = {"sum": 0.1, "mean": 0.0}
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
HERE = Path(__file__).parent


def log_probabilities(
    model: GPT2LMHeadModel, tokens: torch.Tensor, spans: np.ndarray, kind: str
) -> torch.Tensor:
    """Of the tokens in each row's span, [pairs, 2]."""
    logprobs = model(tokens).logits.log_softmax(-1)
    found = []
    for row, (begin, end) in enumerate(spans):
        each = torch.stack([logprobs[row, at - 1, tokens[row, at]] for at in range(begin, end)])
        found.append(each.sum() if kind == "sum" else each.mean())
    return torch.stack(found).reshape(-1, 2)


def trained(kind: str, tokens: torch.Tensor, spans: np.ndarray) -> dict[str, np.ndarray]:
    model, reference = (GPT2LMHeadModel.from_pretrained(HERE / "training").double().eval() for _ in range(2))
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2]
    others = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    measured: dict[str, list[float]] = {}
    for _ in range(STEPS):
        with torch.no_grad():
            before = log_probabilities(reference, tokens, spans, kind)
        chosen, rejected = (BETA * (log_probabilities(model, tokens, spans, kind) - before)).T
        margin, share = chosen - rejected, SMOOTHING[kind]
        loss = (-(1 - share) * logsigmoid(margin) - share * logsigmoid(-margin)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        figures = {
            "loss": loss,
            "chosen_reward": chosen.mean(),
            "rejected_reward": rejected.mean(),
            "margin": margin.mean(),
            "accuracy": (margin > 0).double().mean(),
            "grad_norm": norm,
        }
        for name, value in figures.items():
            measured.setdefault(name, []).append(value.item())
        optimizer.step()
    return {f"{kind}_{name}": np.array(values) for name, values in measured.items()}


def main() -> None:
    config = GPT2LMHeadModel.from_pretrained(HERE / "training").config
    context, vocab = config.n_positions, config.vocab_size
    draw = np.random.default_rng(1)
    tokens, spans = np.zeros((12, context), np.int64), np.zeros((12, 2), np.int64)
    for pair in range(6):
        question = draw.integers(0, vocab, draw.integers(1, context // 2))
        for row in (2 * pair, 2 * pair + 1):
            end = len(question) + draw.integers(1, context // 2)
            tokens[row, :end] = [*question, *draw.integers(0, vocab, end - len(question))]
            spans[row] = len(question), end
    folder = HERE / "dpo"
    folder.mkdir(exist_ok=True)
    found = {"tokens": tokens.astype(np.int32), "spans": spans.astype(np.int32)}
    for kind in SMOOTHING:
        found |= trained(kind, torch.tensor(tokens), spans)
    np.savez(folder / "expected.npz", **found)


if __name__ == "__main__":
    main()
