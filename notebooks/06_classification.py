# %% [markdown]
# # 6. Fine-tuning for classification
#
# A pretrained model continues texts. This notebook follows chapter 6 of "Build a Large Language Model (From
# Scratch)" and makes a model that tells spam from other messages: it gets a new output layer with one number
# a label, and a little training on messages with their labels.
#
# The book does this with GPT-2 and a collection of 5,574 SMS texts. So that everything runs here, in a minute
# or two and without a network, we train a very small model first and make up the messages ourselves.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
table = None  # a CSV file of your own with the columns label and text; None makes messages up
base_steps = 100  # of pretraining the small model
epochs = 3  # how often each message is read in fine-tuning

# %%
import csv
import json
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.finetuning.class_batches import Rows, encoded, padding_of
from jaxgpt.finetuning.classifier import load_classifier
from jaxgpt.log import latest, series

folder = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)

# %% [markdown]
# ## 6.2 The data
#
# Each message is a sentence in which some words are drawn at random. Words such as "free", "claim" and "call"
# stand in both kinds, so that no single word decides. Real messages are much harder than these: here we want
# to see how it works, and not how good it is.

# %%
words = {
    "when": ["tonight", "tomorrow", "on sunday", "at noon", "next week", "after work"],
    "place": ["the station", "home", "the pub", "school", "the office", "the gym"],
    "thing": ["phone", "ticket", "book", "coat", "bike", "ring"],
    "prize": ["holiday", "phone", "gift card", "prize of 2000", "ring tone", "new camera"],
    "code": [str(number) for number in range(80000, 80100)],
}
ham = [
    "are you free {when}? i am at {place}",
    "call me {when}, my new number is {code}",
    "you have won! come to {place} {when}",
    "please claim the {thing} at {place} {when}",
    "text me {when} when you are at {place}",
    "your {thing} is ready at {place} {when}",
]

# %%
spam = [
    "are you alone {when}? call {code}",
    "call {code} {when} for a free {prize}",
    "you have won a {prize}, call {code} {when}",
    "please claim your {prize} {when}, text {code}",
    "text {code} {when} and win a {prize}",
    "your {prize} is ready {when}, call {code}",
]


def messages(sentences, count):
    """So many messages, all different."""
    found = set()
    while len(found) < count:
        drawn = {name: rng.choice(choices) for name, choices in words.items()}
        found.add(rng.choice(sentences).format(**drawn))
    return sorted(found)


# %% [markdown]
# As in the book's collection, there is less spam than ham. The messages go into a CSV file, as your own would
# stand in one.

# %%
if table is None:
    rows = [("ham", text) for text in messages(ham, 240)] + [("spam", text) for text in messages(spam, 120)]
    table = folder / "messages.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *rows])
with open(table, newline="", encoding="utf-8") as file:
    rows = [(row["label"], row["text"]) for row in csv.DictReader(file)]
for label in sorted({label for label, _ in rows}):
    texts = [text for each, text in rows if each == label]
    print(f"{len(texts):4} {label}, such as {texts[0]!r}")

# %% [markdown]
# ## 6.3 Batches
#
# The messages of a batch have different lengths, and the rows of an array have one. Short messages are filled
# up behind their end, which is called padding. In the picture the padding is white.

# %%
tokenizer = jaxgpt.load_tokenizer("bytes")
eight = [text for _, text in rows[:: len(rows) // 8][:8]]
data = encoded(eight, [0] * 8, tokenizer, context=64)
batch = Rows(context=64, padding=padding_of(tokenizer)).batch(data, range(8), length=64)
plt.figure(figsize=(8, 2))
plt.imshow(np.arange(64) < batch.length_B[:, None], cmap="Blues", aspect="auto", vmax=1.5)
plt.xlabel("position")
plt.ylabel("message")
plt.show()

# %% [markdown]
# ## 6.4 A pretrained model
#
# Fine-tuning begins with a model that knows something of language. Ours reads bytes, and has read Python's
# language reference for half a minute. With `base = "gpt2"` in place of this cell, it would be GPT-2.

# %%
base = str(folder / "base")
pretrained = jaxgpt.train(
    "nano",
    {"steps": base_steps, "eval_every": base_steps, "checkpoint_every": base_steps, "sample_tokens": 0},
    out_dir=base,
)

# %% [markdown]
# Could we just ask it? A model that was only pretrained does not follow instructions. It continues the text,
# and what so small a model writes is no answer.

# %%
question = "Is this message spam? Answer yes or no. Message: you have won a ring, call 80012. Answer:"
print(repr(pretrained.model.generate(question, max_new_tokens=40, temperature=0)))

# %% [markdown]
# ## 6.5 A head for labels
#
# The model's last layer turns each position's vector into one logit for every token of the vocabulary. The
# classifier has another head in its place, with one logit for every label.
#
# Which position should the head read? Every position has seen only the tokens before it and itself. The last
# token of the message is the only one that has seen everything. The recipe `classify` reads it, wherever the
# message ends and however much padding follows.
#
# It trains the head, the last block and the last LayerNorm. All other weights stay as they are: they know
# the language, and the last block learns what the labels are about. This is how many numbers that is.

# %%
params = pretrained.model.params


def count(tree):
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


labels = sorted({label for label, _ in rows})
last_block = count(jax.tree.map(lambda leaf: leaf[-1], params["h"]))
trained = last_block + count(params["ln_f"]) + len(labels) * pretrained.model.config.width
print(f"{trained:,} numbers train, of {count(params):,}")

# %% [markdown]
# ## 6.6 and 6.7 Loss, accuracy and training
#
# The loss is the cross-entropy of the labels. What we care about is accuracy, the share of messages whose
# most probable label is right. It cannot be trained directly, because a tiny change of a weight changes no
# label, and so has no gradient.
#
# `data.balance` keeps as many ham messages as there is spam, as the book does. A tenth of the rest is for
# validation, and a fifth for the test at the end.

# %%
settings = {
    "init_from": base,
    "data.path": str(table),
    "data.balance": True,
    "epochs": epochs,
    "eval_every": 7,
    "log_every": 1,
    "optim.learning_rate": 1e-3,  # for GPT-2 the recipe's own, 5e-5, is right
}
run = jaxgpt.train("classify", settings, out_dir=str(folder / "classifier"))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for name, label in (("loss", "training"), ("val_loss", "validation")):
    axes[0].plot(*zip(*series(run.metrics, name), strict=True), label=label)
axes[0].set(title="loss (nats a message)", xlabel="step")
axes[0].legend()
axes[1].plot(*zip(*series(run.metrics, "val_accuracy"), strict=True))
axes[1].set(title="accuracy on the validation messages", xlabel="step", ylim=(0, 1.05))
for axis in axes:
    axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# The test messages were used neither for training nor for any choice. The confusion matrix says which
# mistakes were made: the rows are the right labels, and the columns what the model found.

# %%
accuracy = latest(run.metrics, "test_accuracy")
confusion_CC = np.array(json.loads(latest(run.metrics, "test_confusion")))
assert accuracy == confusion_CC.trace() / confusion_CC.sum()
assert accuracy > 0.75, "two labels by chance would be half"
print(f"{accuracy:.1%} of {confusion_CC.sum()} test messages are right")

# %%
plt.figure(figsize=(3, 3))
plt.imshow(confusion_CC, cmap="Blues")
for (row, column), number in np.ndenumerate(confusion_CC):
    color = "white" if number > confusion_CC.max() / 2 else "black"
    plt.text(column, row, number, ha="center", va="center", color=color)
plt.xticks(range(len(labels)), labels)
plt.yticks(range(len(labels)), labels)
plt.xlabel("found")
plt.ylabel("right")
plt.show()

# %% [markdown]
# ## 6.8 Using it
#
# `jaxgpt.classify` takes a run, a folder or a loaded classifier, and gives each text's label and the
# probabilities of all labels.

# %%
classifier = load_classifier(run.directory)
for text in ("you have won a holiday, call 80001 tomorrow", "are you free after work? i am at the gym"):
    [found] = jaxgpt.classify(classifier, [text])
    print(f"{found.label}: {text!r}  ({found.probabilities[found.label]:.1%})")

# %% [markdown]
# Messages that are classified together are padded to one length. That must not change what is found, and it
# does not, because the head reads the message's own last token and attention never looks ahead.

# %%
short, long = "free entry: text WIN to 80012 for a phone", "see you tomorrow " * 7
[alone] = jaxgpt.classify(classifier, [short])
beside, _ = jaxgpt.classify(classifier, [short, long])
difference = max(abs(alone.probabilities[label] - beside.probabilities[label]) for label in labels)
assert difference < 1e-5
print(f"alone and beside a longer one, the probabilities differ by {difference:.1g}")

# %% [markdown]
# ## The exercises
#
# The exercises change one thing each. This function trains again with a change, and keeps how many of the
# test messages are then right.

# %%
accuracies = {"as above": accuracy}


def train_again(name, change):
    """Train with changed settings, and keep the accuracy on the test messages."""
    out = str(folder / f"change-{len(accuracies)}")
    again = jaxgpt.train("classify", settings | change, out_dir=out, progress=False)
    accuracies[name] = latest(again.metrics, "test_accuracy")
    print(f"{accuracies[name]:.1%}: {name}")


# %% [markdown]
# The book's head reads the last position of the row, behind all the padding. `reads = "end"` does the same.
# **Exercise 6.1** then pads every message to the whole context. Here a few messages that fill the context
# make all rows so long.

# %%
train_again("read the end of the row", {"reads": "end"})

# %%
fillers = [("spam", f"{number} " * 64) for number in range(4)]
with (folder / "long.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([("label", "text"), *rows, *fillers])
longer = {"reads": "end", "data.path": str(folder / "long.csv")}
train_again("exercise 6.1: the same, and rows as long as the context", longer)

# %% [markdown]
# **Exercise 6.2** trains the whole model in place of the last block, and **exercise 6.3** reads the first
# token in place of the last. To train the head alone is one more choice.

# %%
train_again("exercise 6.2: train all layers", {"trains": "all"})

# %%
train_again("exercise 6.3: read the first token", {"reads": "first"})

# %%
train_again("train the head alone", {"trains": "head"})

# %%
names = list(accuracies)[::-1]
plt.figure(figsize=(7, 2.8))
bars = plt.barh(names, [100 * accuracies[name] for name in names])
plt.bar_label(bars, fmt="%.0f", padding=2)
plt.axvline(50, color="gray", linestyle=":")
plt.xlabel("test messages that are right (%)")
plt.xlim(0, 110)
plt.show()

# %% [markdown]
# The first token has seen nothing but itself. All messages that begin with the same letter look the same to
# it, and it cannot do well. A head alone can only use what the pretrained model tells apart already. The
# other rows differ by a few messages of about fifty, and another division of the messages could order them
# differently. `tools/ablation.py` compares such rows on a table of yours, over several divisions into
# training and test texts.

# %%
assert accuracies["exercise 6.3: read the first token"] < accuracies["as above"]

# %% [markdown]
# With real weights and real messages, the same is two commands:
#
# ```
# jaxgpt finetune classify --from gpt2 --data.path messages.csv --data.balance --out-dir runs/spam
# jaxgpt classify runs/spam "you have won a holiday"
# ```
