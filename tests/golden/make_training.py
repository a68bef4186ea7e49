"""Makes training/ beside it: ten AdamW steps of a tiny GPT-2 in PyTorch, in float64, everything stored.

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    python tests/golden/make_training.py

AdamW has betas 0.9 and 0.95, epsilon 1e-8, and weight decay 0.1 on matrices and embeddings. Gradients are
clipped to norm 1 by torch's clip_grad_norm_, there is no dropout, and the learning rates are stored too. Some
tokens are more frequent than others, so that there is something to learn.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, B, T, V = 10, 4, 16, 61


def main() -> None:
    folder = Path(__file__).parent / "training"
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=V,
        n_positions=T,
        n_embd=20,
        n_layer=2,
        n_head=4,
        bos_token_id=60,
        eos_token_id=60,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).train()
    model.save_pretrained(folder)
    model = model.double()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    tokens = np.minimum(np.random.default_rng(5).geometric(0.1, (STEPS, B, T + 1)), V - 1).astype(np.int32)
    rates = 2e-3 * np.minimum(np.arange(1, STEPS + 1) / 4, 1)
    losses, norms = [], []
    for batch, rate in zip(torch.tensor(tokens).long(), rates, strict=True):
        logits = model(batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        losses.append(loss.item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    np.savez(folder / "expected.npz", tokens=tokens, learning_rate=rates, loss=losses, grad_norm=norms)
    save_file(
        {name: p.detach().float() for name, p in model.named_parameters()}, folder / "final.safetensors"
    )


if __name__ == "__main__":
    main()
