"""Makes the folder `peft`: adapters written by PEFT for the tiny models in `plain` and `classifier`.

    pip install torch==2.14.1 transformers==5.14.0 peft==0.21.2 accelerate==1.15.0 numpy
    python tests/golden/make_peft.py

`causal` has adapters on all linear layers, with a rank and an alpha of its own for one of them. `stabilised`
has rank-stabilised ones on `c_attn` of the second layer alone. `classes` has a head that was trained with
them. Every number is random, so that each matters. Logits are computed in float64 from the stored parameters.
With a folder as argument, the program instead prints by how much the logits of the adapter in that folder
differ from those in its expected.npz: the test of what jaxgpt wrote.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

HERE = Path(__file__).parent
ADAPTERS = {
    "causal": (
        "plain",
        GPT2LMHeadModel,
        {
            "task_type": TaskType.CAUSAL_LM,
            "r": 3,
            "lora_alpha": 5,
            "target_modules": ["c_attn", "c_proj", "c_fc"],
            "rank_pattern": {"h.0.mlp.c_fc": 2},
            "alpha_pattern": {"h.0.mlp.c_fc": 7},
        },
    ),
    "stabilised": (
        "plain",
        GPT2LMHeadModel,
        {
            "task_type": TaskType.CAUSAL_LM,
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["c_attn"],
            "layers_to_transform": [1],
            "use_rslora": True,
        },
    ),
    "classes": (
        "classifier",
        GPT2ForSequenceClassification,
        {
            "task_type": TaskType.SEQ_CLS,
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["attn.c_attn", "mlp.c_fc"],
        },
    ),
}


def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model.double().eval()(torch.tensor(tokens).long()).logits.numpy()
    return found


def make() -> None:
    for name, (base, kind, settings) in ADAPTERS.items():
        torch.manual_seed(1)
        model = get_peft_model(kind.from_pretrained(HERE / base), LoraConfig(fan_in_fan_out=True, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        folder = HERE / "peft" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        config = folder / "adapter_config.json"
        config.write_text(config.read_text().replace(str(HERE), "tests/golden"))
        draw = np.random.default_rng(0)
        tokens = draw.integers(0, model.config.vocab_size - 1, (3, 12)).astype(np.int32)
        np.savez(folder / "expected.npz", tokens=tokens, logits=logits_of(model, tokens))


def difference(folder: Path, base: Path) -> float:
    """By how much the logits of jaxgpt's folder differ from those that jaxgpt computed."""
    kind = (
        GPT2ForSequenceClassification if "SEQ_CLS" in (folder / "adapter_config.json").read_text() else None
    )
    expected = np.load(folder / "expected.npz")
    labels = {} if kind is None else {"num_labels": expected["logits"].shape[-1]}
    model = (kind or GPT2LMHeadModel).from_pretrained(base, **labels)
    if kind is not None:
        model.config.pad_token_id = -1  # no text is padded
    model = PeftModel.from_pretrained(model, folder)
    return float(np.abs(logits_of(model, expected["tokens"]) - expected["logits"]).max())


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(difference(Path(sys.argv[1]), Path(sys.argv[2])))
    else:
        make()
