"""Makes the folder `instruct`: ten steps of AdamW of instruction tuning from the model in `training`.

    pip install torch==2.14.1 transformers==5.14.0 numpy
    python tests/golden/make_instruct.py

Six conversations of two turns with random ids are padded on the right. Targets that are not part of an answer
are -100, which PyTorch's loss passes over. Everything is computed in float64 from the stored parameters.
Weight decay applies to matrices and embeddings. The program ran with the versions above on CPU.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2LMHeadModel

STEPS, IGNORED = 10, -100
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
HERE = Path(__file__).parent


def main() -> None:
    model = GPT2LMHeadModel.from_pretrained(HERE / "training").double().eval()
    context, vocab = model.config.n_positions, model.config.vocab_size
    draw = np.random.default_rng(0)
    tokens = np.zeros((6, context), np.int64)
    targets = np.full((6, context), IGNORED)
    spans = []
    for row in range(6):
        ends = np.cumsum(draw.integers(1, context // 4, 4))  # of a question, an answer, a question, an answer
        ids = draw.integers(0, vocab, ends[-1])
        tokens[row, : len(ids)] = ids
        spans.append([0, *ends])
        for begin, end in (ends[:2], ends[2:]):
            targets[row, begin - 1 : end - 1] = ids[begin:end]
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2]
    others = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, **ADAMW), []
    for _ in range(STEPS):
        logits = model(torch.tensor(tokens)).logits
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, vocab), torch.tensor(targets).reshape(-1), ignore_index=IGNORED
        )
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = HERE / "instruct"
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / "expected.npz",
        tokens=tokens.astype(np.int32),
        spans=np.array(spans, np.int32),
        losses=np.array(losses),
    )


if __name__ == "__main__":
    main()
