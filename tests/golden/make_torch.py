"""Makes the folder `torch_save`: a tree saved by torch.save in both of its formats, and by numpy.

    pip install torch==2.13.0 numpy
    python tests/golden/make_torch.py

`zip.pt` and `legacy.pt` (the format before torch 1.6) hold the same tree. `others.pt` holds what no model
needs (made with torch 2.14). `expected.npz` holds the tensors of the tree under their paths, with bfloat16 as
the 16-bit integers of its bits. The program ran with the versions above on CPU; other versions may draw other
numbers.

Three folders are not made here. `bin` was saved by transformers 5.23 and torch 2.13, with
`torch.save(model.state_dict())`. `nanogpt` and `nanogpt_compiled` were saved by nanoGPT's own train.py with
torch 2.13, after 10 iterations on CPU; the second used torch.compile and bias=False. Their logits were
computed in float64.
"""

from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

SEED = 5


def tree() -> dict:
    """Every dtype, and every way in which a tensor can lie in its storage."""
    torch.manual_seed(SEED)
    base = torch.randn(6, 4, 5)
    linear = torch.nn.Linear(3, 2)
    linear.register_buffer("mask", torch.tril(torch.ones(3, 3)).bool())
    numbers = torch.arange(-3, 9)
    dtypes = OrderedDict(
        float16=base.half(),
        bfloat16=base.bfloat16(),
        float64=base.double(),
        int64=numbers,
        int32=numbers.int(),
        int16=numbers.short(),
        int8=numbers.char(),
        uint8=numbers.abs().byte(),
        bool=numbers > 2,
    )
    views = {
        "whole": base,
        "tied": base,
        "row": base[2],
        "column": base[:, 1, 3],
        "transposed": base.permute(2, 0, 1),
        "every_other": base[1::2, :, ::3],
        "last": base[-1, -1, -1],
        "none": base[:, :0],
        "diagonal": base[0].diagonal(),
    }
    plain = {
        "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**63 - 1, 0.1, float("inf"), -0.0],
        "words": ["", "é", "🙂", "model"],
        "others": (None, True, False, (), [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "state": {0: {"step": torch.tensor(7.0)}, 70000: {"step": torch.tensor(8)}},
    }
    return {
        "module": linear.state_dict(),
        "parameter": linear.weight,
        "dtypes": dtypes,
        "views": views,
    } | plain


def others() -> dict:
    """What torch's safe loader reads beside tensors and plain data, and containers that occur twice."""
    shared = {"lr": 0.1, "betas": [0.9, 0.95]}
    return {
        "weight": torch.arange(3.0),
        "kinds": [{1, 2}, b"bytes", bytearray(b"b"), 1j, torch.Size([2, 3]), torch.float16, Counter("aab")],
        "device": torch.device("cuda", 0),
        "numbers": [2**200, -(2**100)],
        "keys": {-1: 0, 0.5: 1, None: 2, True: 3, (1, "a"): 4},
        "twice": [shared, shared, shared["betas"]],
    }


def leaves(node: object, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(node, torch.Tensor):
        node = node.detach()
        return {path[1:]: (node.view(torch.int16) if node.dtype == torch.bfloat16 else node).numpy()}
    items = (
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    )
    return {place: leaf for key, value in items for place, leaf in leaves(value, f"{path}/{key}").items()}


def main() -> None:
    folder = Path(__file__).parent / "torch_save"
    folder.mkdir(exist_ok=True)
    torch.save(tree(), folder / "zip.pt")
    torch.save(tree(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(others(), folder / "others.pt")
    torch.load(folder / "others.pt", weights_only=True)
    np.savez(folder / "expected.npz", **leaves(tree()))


if __name__ == "__main__":
    main()
