# %% [markdown]
# # 7. Following instructions, and preferring better answers
#
# A pretrained model continues a text. To answer a question, it has to see how questions are answered. This
# notebook follows chapter 7 of "Build a Large Language Model (From Scratch)": instructions in a template,
# targets that do not count, fine-tuning, answers to a test set, and at the end preference tuning (DPO).
#
# The book teaches GPT-2 medium 1,100 instructions of all kinds. Our model has a four-hundredth of the size
# and a minute, so we teach it three kinds of little tasks with words.

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
epochs = 30  # how often each instruction is read
pair_epochs = 6  # how often each pair of answers is read

# %%
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.evaluation.answers import answer_rows, answers_of, questions_of
from jaxgpt.finetuning.dialogue_batches import DialogueRows, encode
from jaxgpt.inference.requests import Request
from jaxgpt.inference.sampling import Sampling
from jaxgpt.inference.templates import template_of
from jaxgpt.log import latest, series
from jaxgpt.text.dialogues import dialogue_of, read_dialogues
from jaxgpt.text.examples import Example, padded
from jaxgpt.training.loss import cross_entropy

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 7.2 Instructions and their template
#
# The book's file is a list of entries with an instruction, an input that may be empty, and the output that
# is right. A model reads one text, so a template turns an entry into one. The book's template is that of
# Alpaca. This is one of its entries.

# %%
row = {
    "instruction": "Identify the correct spelling of the following word.",
    "input": "Ocassion",
    "output": "The correct spelling is 'Occasion.'",
}
tokenizer, entry = jaxgpt.load_tokenizer("bytes"), dialogue_of(row)
[question] = questions_of([entry], template_of(tokenizer, "instruction", folder, None))
text = tokenizer.decode(question) + entry[-1].content
assert_printed(
    text,
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\nIdentify the correct spelling of the following word.\n\n### Input:\n"
    "Ocassion\n\n### Response:\nThe correct spelling is 'Occasion.'",
)
print(text)

# %% [markdown]
# Our own entries have the same form.

# %%
words = """apple boat book chair cloud coat cup desk dog door egg farm flag game garden hat hill horse
house island jar key king lake lamp lion map moon nail nest pen pond queen rat road rock room shoe song
spoon star stone table tiger tree wall wheel wind wing"""
nouns = words.split()
kinds = {
    "In capital letters.": str.upper,
    "What is the plural?": lambda word: f"{word}s",
    "Repeat the word.": str,
}
entries = [
    {"instruction": instruction, "input": noun, "output": answer(noun)}
    for noun in nouns
    for instruction, answer in kinds.items()
]
table = folder / "instructions.json"
table.write_text(json.dumps(entries, indent=1), encoding="utf-8")
print(f"{len(entries)} entries, such as {entries[0]}")

# %% [markdown]
# Alpaca's template has more than 150 characters, which is too much for a model whose context is 128 bytes.
# **Exercise 7.1** uses the shorter template of Phi-3, and so do we.

# %%
dialogues, _ = read_dialogues(table)
for name in ("instruction", "phi3"):
    template = template_of(tokenizer, name, folder, None)
    [question] = questions_of(dialogues[:1], template)
    print(f"--- {template.name}, {len(question)} bytes\n{tokenizer.decode(question)}")

# %% [markdown]
# ## 7.3 Batches, and what counts in the loss
#
# The entries of a batch have different lengths and are padded to one length. Padding must not be learned. The
# book writes -100 as its target, which PyTorch's loss leaves out; ours has a weight of 0 there. The first
# end-of-text token behind an entry counts, so that the model learns to stop. These are the book's three
# entries and their targets.

# %%
texts = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
batch = padded([Example([*ids, 50256], 1) for ids in texts], length=5)
targets_BT = np.where(batch.weights_BT > 0, batch.targets_BT, -100)
assert_printed(targets_BT, [[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]])
targets_BT

# %% [markdown]
# Of three predictions, the mean loss is 0.7936. Without the third it is that of the first two.

# %%
losses = cross_entropy(jnp.array([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]]), jnp.array([0, 1, 1]))
assert_printed(losses.mean(), 0.7936)
weights = jnp.array([1.0, 1.0, 0.0])
assert_printed((losses * weights).sum() / weights.sum(), 1.1269)

# %% [markdown]
# **Exercise 7.2** asks what happens if the questions do not count either: then the model learns to answer,
# and not to ask. jaxgpt does that unless `answers_only = false`. The picture shows both for three entries.

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 3.5), sharex=True)
for axis, answers_only in zip(axes, (False, True), strict=True):
    encoded = encode(dialogues[:3], template, tokenizer, context=128, answers_only=answers_only)
    batch = DialogueRows(encoded.examples, context=128, pack=False).batch([0, 1, 2], 0, 3)
    axis.imshow(batch.weights_BT, aspect="auto", cmap="Greens", interpolation="none")
    axis.set(ylabel="entry", yticks=[0, 1, 2], title=f"targets that count, answers_only = {answers_only}")
axes[1].set_xlabel("position")
plt.tight_layout()
plt.show()

# %% [markdown]
# In the lower picture, each dark stripe is one answer and the end of the text. These are the targets there.

# %%
for targets_T, weights_T in zip(batch.targets_BT, batch.weights_BT, strict=True):
    counted = [int(id) for id in targets_T[np.asarray(weights_T) > 0]]
    assert counted[-1] == tokenizer.end_of_text
    print(repr(tokenizer.decode(counted[:-1])), "and the end of the text")

# %% [markdown]
# Short entries can also share a row, one behind the other. They must not see one another, and each begins at
# position 0 again; the batch says so by segments. Packed rows have no padding between them, so that fewer
# rows are computed: `pack = true`.

# %%
packed = DialogueRows(encoded.examples, context=128, pack=True)
print(f"{len(packed)} packed rows in place of {len(encoded.examples)}")

# %% [markdown]
# ## 7.5 A pretrained model
#
# The book loads GPT-2 medium. We train a small model of bytes for half a minute. It does not answer the
# question, but continues it as any text.

# %%
base = str(folder / "base")
settings = {"steps": base_steps, "eval_every": base_steps, "checkpoint_every": base_steps, "sample_tokens": 0}
pretrained = jaxgpt.train("nano", settings, out_dir=base)
print(repr(pretrained.model.generate(tokenizer.decode(question), max_new_tokens=40, temperature=0)))

# %% [markdown]
# ## 7.6 Fine-tuning
#
# Fine-tuning is training as before, on other data: the loss is still that of the next token. A tenth of the
# entries is kept for the test, and a twentieth for validation. The smaller the model, the larger the
# learning rate; for GPT-2 the recipe's own is right.

# %%
tuning = {
    "init_from": base,
    "data.path": str(table),
    "template": "phi3",
    "epochs": epochs,
    "eval_every": 100,
    "log_every": 10,
    "checkpoint_every": 1000,
    "sample_tokens": 20,
    "optim.learning_rate": 1e-3,
}
tuned = jaxgpt.train("instruct", tuning, out_dir=str(folder / "tuned"))

# %%
for name, label in (("loss", "training"), ("val_loss", "validation")):
    plt.plot(*zip(*series(tuned.metrics, name), strict=True), label=label)
plt.xlabel("step")
plt.ylabel("loss (nats a byte of an answer)")
plt.grid(alpha=0.3)
plt.legend()
plt.show()
losses = [loss for _, loss in series(tuned.metrics, "val_loss")]
assert losses[-1] < losses[0] / 2, "it learns to answer"

# %% [markdown]
# ## 7.7 Answers to the test
#
# The run keeps the test entries in `test.jsonl`. `jaxgpt answer RUN` writes the model's answers beside the
# right ones; these are the functions behind it.

# %%
held_out, _ = read_dialogues(tuned.directory / "test.jsonl")


def answers(model, dialogues):
    """The model's greedy answers to the last question of each dialogue."""
    greedy = Sampling(temperature=0)
    requests = [
        Request(prompt=ids, max_new_tokens=20, sampling=greedy) for ids in questions_of(dialogues, template)
    ]
    return answers_of(model.engine(slots=8), requests, tokenizer, template)


# %%
for row in answer_rows(held_out[:6], answers(tuned.model, held_out[:6])):
    print(f"{row['instruction']} {row['input']}: {row['model_response']!r}, right is {row['output']!r}")

# %% [markdown]
# Where there is one right answer, we can count. Before fine-tuning no answer was right.

# %%
expected = [dialogue[-1].content for dialogue in held_out]


def share_right(model):
    """Which share of the test is answered exactly as it should be."""
    found = answers(model, held_out)
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


before, after = share_right(pretrained.model), share_right(tuned.model)
assert before == 0 and after > 0
print(f"right before: {before:.0%}, after: {after:.0%} of {len(expected)}")

# %% [markdown]
# ## 7.8 Scoring answers
#
# Most questions have no single right answer. The book lets a larger model judge, on a scale from 0 to 100.
# `jaxgpt judge` asks any model behind an address that speaks OpenAI's protocol, such as `jaxgpt serve`:
#
# ```
# jaxgpt answer runs/instruct --out answers.json
# jaxgpt judge answers.json --url http://localhost:8000/v1 --model NAME
# ```
#
# ## Preference tuning
#
# Often it is easier to say which of two answers is better than to write the best one. Direct preference
# optimization (DPO) trains on such pairs. It makes the better answer more probable in comparison with the
# worse one, and measures both against the model that it began with, the reference. Our better answers are
# polite.

# %%
pairs = [{**entry, "chosen": f"Sure: {entry['output']}", "rejected": entry["output"]} for entry in entries]
(folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
preferring = {
    "init_from": str(tuned.directory),
    "data.path": str(folder / "pairs.json"),
    "epochs": pair_epochs,
    "eval_every": 20,
    "sample_tokens": 20,
    "optim.learning_rate": 1e-4,
}
polite = jaxgpt.train("dpo", preferring, out_dir=str(folder / "polite"))

# %% [markdown]
# The loss begins at log 2 = 0.693: at first the model is its own reference and prefers neither answer. The
# margin says how much more likely the better answer has become, compared with the worse one.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for axis, name in zip(axes, ("loss", "margin"), strict=True):
    for key, label in ((name, "training"), (f"val_{name}", "validation")):
        axis.plot(*zip(*series(polite.metrics, key), strict=True), label=label)
    axis.set(title=name, xlabel="step")
    axis.grid(alpha=0.3)
    axis.legend()
plt.show()

# %%
begin = series(polite.metrics, "val_loss")[0][1]
assert abs(begin - np.log(2)) < 1e-4, "neither answer is preferred at first"
assert latest(polite.metrics, "val_loss") < begin / 4 and latest(polite.metrics, "val_margin") > 0
print(f"validation loss at first {begin:.3f}, at the end {latest(polite.metrics, 'val_loss'):.3f}")

# %% [markdown]
# By these curves, the training could not be better. But we should also read what the model writes now.

# %%
texts = answers(polite.model, held_out)
for dialogue, text in zip(held_out[:6], texts[:6], strict=True):
    print(f"{dialogue[0].content} {dialogue[0].input}: {text!r}")
still_right = sum(text.endswith(right) for text, right in zip(texts, expected, strict=True)) / len(texts)
assert still_right <= after
print(f"with the right word at the end: {still_right:.0%}; right before: {after:.0%}")

# %% [markdown]
# It has not become better at its tasks. DPO only asks for a distance between two answers. Both may become
# improbable, as long as the worse one does so faster, and other texts take their place. Here the model had
# never written a polite answer before, and was pushed far away from what it knew. A small learning rate, few
# epochs and a larger `beta` hold a model closer to the one that it began with, and pairs of answers that it
# could have written itself ask for less.

# %% [markdown]
# **Exercise 7.3** trains on Alpaca's 52,000 instructions. That takes a GPU, and one line:
# `jaxgpt finetune instruct --from gpt2-medium --data.path alpaca_data.json`. **Exercise 7.4** trains adapters
# in place of all weights: `--trains lora`. The notebook of appendix E explains them.
