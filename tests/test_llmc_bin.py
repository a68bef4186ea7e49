"""We read and write llm.c's file as it is put together here, number by number from its description."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxgpt.errors import DataError
from jaxgpt.weights.convert import with_dtype, write_model
from jaxgpt.weights.formats.llmc_bin import open_llmc
from jaxgpt.weights.open import open_model

PLAIN = Path(__file__).parent / "golden" / "plain"
BLOCK = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.c_attn.weight",
    "attn.c_attn.bias",
    "attn.c_proj.weight",
    "attn.c_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


def by_hand(dtype: type, version: int) -> bytes:
    """train_gpt2.py's write_model: header, then wte, wpe, each kind of the blocks over all layers, ln_f."""
    arrays = {name: tensor.read() for name, tensor in open_model(PLAIN).tensors.items()}
    header = np.zeros(256, np.int32)
    header[:8] = 20240326, version, 16, 61, 2, 4, 20, 128
    parts = [np.vstack([arrays["wte.weight"], np.zeros((67, 20))]), arrays["wpe.weight"]]
    for kind in BLOCK:
        parts += [arrays[f"h.{layer}.{kind}"].T for layer in range(2)]  # of a vector, .T is itself
    parts += [arrays["ln_f.weight"], arrays["ln_f.bias"]]
    return header.tobytes() + b"".join(part.astype(dtype).tobytes() for part in parts)


@pytest.mark.parametrize(("dtype", "version"), [(np.float32, 3), (ml_dtypes.bfloat16, 5)])
def test_the_file_is_as_described_both_ways(tmp_path: Path, dtype: type, version: int) -> None:
    model = with_dtype(open_model(PLAIN), np.dtype(dtype).name)
    write_model(model, tmp_path / "ours.bin", "llmc")
    assert (tmp_path / "ours.bin").read_bytes() == by_hand(dtype, version)
    found = open_llmc(tmp_path / "ours.bin")
    assert found.config == model.config and found.dtype == model.dtype
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read())


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (1, 4, "its version is 4"),
        (2, -16, "header is inconsistent"),
        (3, 62, "header is inconsistent|do not fit|bytes, not"),
        (4, 2**31 - 1, "layers = 2147483647"),
        (5, 3, "width = 20"),
        (7, 60, "header is inconsistent"),
        (7, 2**31 - 1, "bytes, not"),
        (9, 1, "header is inconsistent"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, place: int, value: int, said: str) -> None:
    content = bytearray(by_hand(np.float32, 3))
    content[4 * place : 4 * place + 4] = value.to_bytes(4, "little", signed=True)
    if place == 3:  # 62 of 128 rows are a model too, with one row of padding: only the length tells a lie
        content = content[:-4]
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_llmc(tmp_path / "x.bin")


@pytest.mark.parametrize("length", [0, 4, 1023, 1024, 40_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "x.bin").write_bytes(by_hand(np.float32, 3)[:length])
    with pytest.raises(DataError, match=r"not llm\.c's model file"):
        open_llmc(tmp_path / "x.bin")
