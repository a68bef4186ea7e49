# %% [markdown]
# # E. Fine-tuning with LoRA
#
# Fine-tuning all of a model needs memory for all of its gradients and for the optimizer's running means, and
# makes a copy of the whole model for every task. LoRA (low-rank adaptation) leaves the model as it is and
# trains two small matrices beside each of its large ones. This notebook follows appendix E of "Build a Large
# Language Model (From Scratch)".

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
base_steps = 100  # of pretraining the small model
epochs = 4  # how often each message is read in fine-tuning

# %%
import csv
import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.log import latest, series

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## E.1 The idea
#
# A linear layer multiplies its input by a matrix W. Training adds a matrix of changes of the same size. LoRA
# writes these changes as a product of a tall matrix A and a wide matrix B. The number of columns of A, which
# is the number of rows of B, is called the rank. It is small, and so are A and B.

# %%
inputs, outputs, rank, alpha = 768, 768, 16, 16
W = jax.random.normal(jax.random.key(0), (inputs, outputs)) / np.sqrt(inputs)
bound = 1 / np.sqrt(inputs)
A = jax.random.uniform(jax.random.key(1), (inputs, rank), minval=-bound, maxval=bound)
B = jnp.zeros((rank, outputs))
print(
    f"W has {W.size:,} numbers, A and B have {A.size + B.size:,}, which is {(A.size + B.size) / W.size:.1%}"
)

# %% [markdown]
# B begins as zeros. So A B is zero at first, and the layer computes what it did before. How strongly the
# changes count is set by alpha: they are multiplied by alpha / rank.

# %%
x = jax.random.normal(jax.random.key(2), (3, inputs))


def layer(x, W, A, B):
    """A linear layer with an adapter beside it."""
    return x @ W + (alpha / rank) * (x @ A) @ B


np.testing.assert_array_equal(layer(x, W, A, B), x @ W)

# %% [markdown]
# After training, the adapter can be merged: W + (alpha / rank) A B is one matrix again, as fast as before.

# %%
B = jax.random.normal(jax.random.key(3), B.shape) / 10  # as if it had been trained
whole = W + (alpha / rank) * A @ B
np.testing.assert_allclose(layer(x, W, A, B), x @ whole, atol=1e-4)

# %% [markdown]
# What can such a product change? Its columns are sums of the few columns of A, so that it has at most as
# many directions as its rank. The singular values of a matrix tell how many directions it has.

# %%
for name, matrix in (("W", W), ("the changes A B", A @ B)):
    values = np.linalg.svd(matrix, compute_uv=False)
    plt.semilogy(np.arange(1, 41), np.maximum(values[:40], 1e-8), ".", label=name)
    print(f"{np.linalg.matrix_rank(matrix)} directions: {name}")
plt.axvline(rank + 0.5, color="gray", linestyle=":")
plt.xlabel("number of the direction")
plt.ylabel("singular value")
plt.legend()
plt.show()
assert np.linalg.matrix_rank(A @ B) == rank

# %% [markdown]
# ## E.2 Data
#
# We make up messages of two kinds, as in the notebook of chapter 6.

# %%
rng = np.random.default_rng(0)
words = {
    "when": ["tonight", "tomorrow", "on sunday", "at noon", "next week", "after work"],
    "what": ["phone", "ticket", "book", "coat", "bike", "ring", "holiday", "camera"],
    "code": [str(number) for number in range(80000, 80100)],
}
sentences = {
    "ham": ["are you free {when}?", "i won the {what} {when}", "bring {what} {code} {when}, please"],
    "spam": ["win a {what}: call {code}", "free {what} {when}, text {code}", "claim {what} {code} {when}"],
}
rows = set()
while len(rows) < 240:
    label = "ham" if len(rows) % 2 else "spam"
    drawn = {name: rng.choice(choices) for name, choices in words.items()}
    rows.add((label, rng.choice(sentences[label]).format(**drawn)))

# %% [markdown]
# ## E.3 A model
#
# We train a small model of bytes for half a minute. It stands for GPT-2.

# %%
table, base = folder / "messages.csv", str(folder / "base")
with table.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([("label", "text"), *sorted(rows)])
settings = {"steps": base_steps, "eval_every": base_steps, "checkpoint_every": base_steps, "sample_tokens": 0}
pretrained = jaxgpt.train("nano", settings, out_dir=base)

# %% [markdown]
# ## E.4 Fine-tuning with adapters
#
# The book's classifier of GPT-2 has 124,441,346 numbers. It puts an adapter of rank 16 beside every linear
# layer: query, key and value apart, the output of attention, both layers of the MLP, and the new head.

# %%
config = dataclasses.replace(jaxgpt.load_recipe("gpt2").model, vocab_multiple=1)
shapes = jax.eval_shape(jaxgpt.define(config).init, jax.random.key(0))
width, classes = config.width, 2
model_size = sum(leaf.size for leaf in jax.tree.leaves(shapes)) + width * classes + classes
assert_printed(model_size, 124_441_346)
in_a_block = [(width, width)] * 3 + [(width, width), (width, 4 * width), (4 * width, width)]
adapters = config.layers * sum(rank * (a + b) for a, b in in_a_block) + rank * (width + classes)
assert_printed(adapters, 2_666_528)
print(f"{adapters / model_size:.1%} of the numbers train")

# %% [markdown]
# `trains = "lora"` puts adapters beside the linear layers that `lora.targets` names. Only they train, and the
# head. Adapters take a larger learning rate than all weights do.

# %%
tuning = {"init_from": base, "data.path": str(table), "epochs": epochs, "eval_every": 10, "log_every": 2}
by_lora = {"trains": "lora", "lora.rank": 8, "lora.alpha": 16.0, "lora.targets": ".*"}
lora = jaxgpt.train(
    "classify", tuning | by_lora | {"optim.learning_rate": 2e-3}, out_dir=str(folder / "lora")
)

# %%
full = jaxgpt.train(
    "classify", tuning | {"trains": "all", "optim.learning_rate": 1e-3}, out_dir=str(folder / "full")
)

# %%
for name, run in (("LoRA", lora), ("all weights", full)):
    plt.plot(*zip(*series(run.metrics, "val_loss"), strict=True), label=name)
    assert latest(run.metrics, "test_accuracy") > 0.75, "two labels by chance would be half"
    print(f"{name}: {latest(run.metrics, 'test_accuracy'):.1%} of the test messages are right")
plt.xlabel("step")
plt.ylabel("validation loss (nats a message)")
plt.grid(alpha=0.3)
plt.legend()
plt.show()

# %% [markdown]
# A checkpoint of the first run holds the adapters and the head, and the name and a digest of the base. A
# checkpoint of the second one holds a whole model. (Both also hold the optimizer's running means.)


# %%
def bytes_of(directory):
    """How many bytes a run's newest checkpoint takes."""
    newest = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


small, large = bytes_of(lora.directory), bytes_of(full.directory)
assert small < large / 2
print(f"{small / 1e6:.2f} MB and {large / 1e6:.2f} MB")

# %% [markdown]
# ## Using adapters
#
# The base stays one model for all tasks. `classify`, `generate`, `chat` and `serve` take `--adapter`, and
# `jaxgpt.classify` and `jaxgpt.load` take `adapter=`.

# %%
text = "free phone tonight, text 80042"
[beside] = jaxgpt.classify(base, [text], adapter=lora.directory)
[alone] = jaxgpt.classify(lora.directory, [text])  # finds the base by the name that it keeps
assert beside == alone
print(beside)

# %% [markdown]
# For other programs, `jaxgpt convert` writes the adapter alone in the layout of PEFT, or merged into a whole
# model:
#
# ```
# jaxgpt convert runs/lora adapter --to peft
# jaxgpt convert runs/lora whole --to huggingface
# ```
