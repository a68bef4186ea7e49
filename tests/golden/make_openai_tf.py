"""Makes the folders of `openai_tf`: an hparams.json and a TensorFlow checkpoint, as OpenAI published GPT-2.

    pip install tensorflow-cpu==2.21.0 safetensors numpy
    python tests/golden/make_openai_tf.py FOLDER tests/golden/openai_tf/NAME

FOLDER is a Hugging Face folder with an expected.npz, which holds the model's logits in float64. The two
folders that `plain` and `odd` were made from are not kept here; the folders of the same names beside
`openai_tf` are other models. Both were saved by transformers 5.23 and torch 2.13. The model of `plain` has 3
layers of width 48 and 257 tokens. The model of `odd` has 1 layer of width 24, with an MLP of width 40 and a
layer norm epsilon of 1e-3, which hparams.json cannot say. Given those folders, this program wrote what is
here byte for byte, on CPU.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

# OpenAI's name -> Hugging Face's
HPARAMS = {"n_vocab": "vocab_size", "n_ctx": "n_positions"} | {
    name: name for name in ("n_embd", "n_head", "n_layer")
}
LEAVES = {"weight": "w", "bias": "b"}
LEAVES_OF_NORMS = {"weight": "g", "bias": "b"}


def variables(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under OpenAI's names; matrices are weights of convolutions of width 1 there."""
    found = {}
    for name, array in tensors.items():
        *scopes, module, kind = name.removeprefix("transformer.").split(".")
        if module in ("wte", "wpe"):
            path = [module]
        else:
            path = [*scopes, module, (LEAVES_OF_NORMS if module.startswith("ln") else LEAVES)[kind]]
        variable = "/".join(["model", *path]).replace("/h/", "/h")
        found[variable] = array[None] if path[-1] == "w" else array
    return found


def main(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    (target / "hparams.json").write_text(
        json.dumps({ours: config[theirs] for ours, theirs in HPARAMS.items()})
    )
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        arrays = variables(load_file(source / "model.safetensors"))
        saved = {name: tf.compat.v1.get_variable(name, initializer=array) for name, array in arrays.items()}
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(saved, save_relative_paths=True)
        saver.save(session, str(target / "model.ckpt"), write_meta_graph=False)
    shutil.copy(source / "expected.npz", target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
