"""Makes the folder `classifier`: a tiny GPT2ForSequenceClassification, its logits, and ten steps of AdamW.

    pip install torch==2.13.0 transformers==5.14.0 safetensors numpy
    python tests/golden/make_classifier.py

The texts have different lengths, and are padded on the right with the end of text, as transformers expects.
Logits and losses are computed in float64 from the stored parameters. Weight decay applies to matrices and
embeddings. The program ran with the versions above on CPU; other versions may draw other numbers.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

END, LENGTHS, STEPS = 60, (5, 16, 1, 9, 12, 3), 10
LABELS = {0: "ham", 1: "spam", 2: "other"}
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def main() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61,
        n_positions=16,
        n_embd=20,
        n_layer=2,
        n_head=4,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    model = GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = Path(__file__).parent / "classifier"
    model.save_pretrained(folder)
    draw = np.random.default_rng(0)
    tokens = np.full((len(LENGTHS), max(LENGTHS)), END)
    for row, length in enumerate(LENGTHS):
        tokens[row, :length] = draw.integers(0, END, length)
    labels = draw.integers(0, len(LABELS), len(LENGTHS))
    model = model.double()
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.numpy()
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2]
    others = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, losses = torch.optim.AdamW(groups, **ADAMW), []
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(model(torch.tensor(tokens)).logits, torch.tensor(labels))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.savez(
        folder / "expected.npz",
        tokens=tokens.astype(np.int32),
        lengths=np.array(LENGTHS, np.int32),
        labels=labels.astype(np.int32),
        logits=logits,
        losses=np.array(losses),
    )


if __name__ == "__main__":
    main()
