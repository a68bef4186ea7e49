"""Makes the folder `architectures`: what PyTorch and transformers compute with the models of chapter 1.

    pip install torch==2.14.1 transformers==5.14.0 numpy
    python tests/golden/make_architectures.py

`bert.npz` has the weights of a tiny BertForPreTraining under their names, texts of different lengths, and
both of its logits: those of hidden words, and those of the two classes. `transformer.npz` has those of a
tiny torch.nn.Transformer without the LayerNorms that PyTorch adds behind its encoder and decoder, and
`cross.npz` those of a torch.nn.MultiheadAttention between two sequences. `gru.npz` has those of a
torch.nn.GRU. Everything is computed in float64 from the stored float32 weights. The program ran with the
versions above on CPU; other versions may draw other numbers.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForPreTraining

FOLDER = Path(__file__).parent / "architectures"
LENGTHS = (5, 12, 1, 9)


def texts(vocab: int, lengths: tuple[int, ...], seed: int) -> np.ndarray:
    """Random ids, padded on the right with 0."""
    draw = np.random.default_rng(seed)
    tokens = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = draw.integers(1, vocab, length)
    return tokens


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter moved, so that none is 0 or 1. It is no longer in training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def save(name: str, model: torch.nn.Module, **arrays: np.ndarray) -> None:
    weights = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    np.savez_compressed(FOLDER / f"{name}.npz", **weights, **arrays)


def bert() -> None:
    config = BertConfig(
        vocab_size=37,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=14,
        pad_token_id=0,
    )
    model = shaken(BertForPreTraining(config)).double()
    tokens = texts(37, LENGTHS, 0)
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        out = model(ids, attention_mask=(ids != 0).long())
    save(
        "bert",
        model,
        tokens=tokens,
        words=out.prediction_logits.numpy(),
        classes=out.seq_relationship_logits.numpy(),
    )


def transformer() -> None:
    model = torch.nn.Transformer(16, 4, 2, 2, 40, dropout=0.0, batch_first=True)
    model.encoder.norm = model.decoder.norm = None
    model = shaken(model).double()
    lengths = (3, 7, 1, 5)
    source, targets = torch.randn(4, 7, 16).double(), torch.randn(4, 6, 16).double()
    padding = torch.arange(7)[None] >= torch.tensor(lengths)[:, None]
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6).double()
    with torch.no_grad():
        out = model(
            source, targets, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding
        )
    arrays = {"source": source, "targets": targets, "states": out, "real": ~padding}
    save("transformer", model, **{name: array.numpy() for name, array in arrays.items()})


def cross() -> None:
    model = shaken(torch.nn.MultiheadAttention(16, 4, batch_first=True)).double()
    queries, keys = torch.randn(2, 3, 16).double(), torch.randn(2, 5, 16).double()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        out, _ = model(queries, keys, keys, key_padding_mask=~real)
    arrays = {"queries": queries, "keys": keys, "real": real, "found": out}
    save("cross", model, **{name: array.numpy() for name, array in arrays.items()})


def gru() -> None:
    model = shaken(torch.nn.GRU(12, 12, batch_first=True)).double()
    inputs, first = torch.randn(3, 6, 12).double(), torch.randn(1, 3, 12).double()
    with torch.no_grad():
        states, _ = model(inputs, first)
    save("gru", model, inputs=inputs.numpy(), first=first[0].numpy(), states=states.numpy())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    for make in (bert, transformer, cross, gru):
        make()
