"""Makes the folders beside it: tiny GPT-2 models saved by Hugging Face transformers, with their logits.

    pip install torch==2.13.0 transformers==5.23.0 safetensors numpy
    python tests/golden/make_huggingface.py

Every parameter is moved away from its initial 0 or 1. The logits are computed in float64 from the stored
parameters, so they carry no rounding of their own. The program ran with the versions above on CPU; other
versions may draw other numbers.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SMALL = {"vocab_size": 61, "n_positions": 16, "n_embd": 20, "n_layer": 2, "n_head": 4}
VARIANTS = {
    "plain": {},
    "sharded": {"n_layer": 11},  # as text, h.10 comes before h.2
    "headless": {},  # saved as GPT2Model: no `transformer.` prefix
    "odd": {"n_layer": 1, "n_head": 1, "n_inner": 28, "n_positions": 7, "layer_norm_epsilon": 1e-3},
    "scaled": {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False},
    "bfloat16": {},
}


def main() -> None:
    for seed, (name, changes) in enumerate(VARIANTS.items()):
        torch.manual_seed(seed)
        config = GPT2Config(**SMALL | changes, bos_token_id=60, eos_token_id=60)
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        if name == "bfloat16":
            model = model.bfloat16()
        folder = Path(__file__).parent / name
        saved = model.transformer if name == "headless" else model
        saved.save_pretrained(folder, max_shard_size="20KB" if name == "sharded" else "1GB")
        exact = model.double()
        tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (2, config.n_positions))
        with torch.no_grad():
            logits = exact(torch.tensor(tokens)).logits.numpy()
        np.savez(folder / "expected.npz", tokens=tokens.astype(np.int32), logits=logits)


if __name__ == "__main__":
    main()
