# %% [markdown]
# # 1. Understanding language models
#
# This notebook follows chapter 1 of "Build a Large Language Model (From Scratch)". It puts the architectures
# that the chapter tells of side by side: GPT, which predicts the next word; BERT, which guesses hidden words;
# the original Transformer, which makes one sequence from another; and the recurrent networks that came
# before. Each of them is trained for real. At the end a small GPT is given tasks that it solves from examples
# in its prompt.
#
# It needs no GPU and takes about four minutes.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
word_steps = 2000  # of training on hidden words
sequence_steps = {"GRU": 1000, "GRU with attention": 600, "Transformer": 600}
longest = 16  # letters in the longest sequence that is to be reversed
prompt_steps = 1500  # of training the small GPT on tasks

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.config import EncoderConfig, OptimConfig, RNNConfig, Seq2SeqConfig
from jaxgpt.finetuning.class_batches import Encoded, Rows, TrainingTexts
from jaxgpt.finetuning.class_head import class_logits, class_loss
from jaxgpt.inference.prompts import few_shot_prompt
from jaxgpt.model import encoder, rnn, seq2seq
from jaxgpt.text import bpe
from jaxgpt.text.batch import shifted
from jaxgpt.text.batches import TrainingBatches
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.text.masked_words import MaskedWords
from jaxgpt.text.sequences import BEGIN, Sequences, right
from jaxgpt.text.shards import TokenStream
from jaxgpt.training.fit import fit
from jaxgpt.training.flops import count_parameters
from jaxgpt.training.loss import next_token_loss, translation_loss

# %% [markdown]
# ## 1.1 A text is its own teacher
#
# A language model learns to predict the next word of a text. Nobody has to label anything, because the right
# answer stands in the text itself. This is called self-supervision. The text here is one that every Python
# carries with it: its own language reference.

# %%
documents = builtin_documents()
gpt2 = jaxgpt.load_tokenizer("gpt2")
sentence = documents["if"].split("\n\n")[1]  # the first one behind the heading
batch = shifted(np.array([gpt2.encode(sentence)[:9]]))
for count in range(1, 9):
    read, follows = batch.inputs_BT[0, :count], batch.targets_BT[0, count - 1 : count]
    print(f"{gpt2.decode(read)!r} -> {gpt2.decode(follows)!r}")

# %% [markdown]
# GPT-3, the model behind the first ChatGPT, is this idea at a large scale: 96 blocks with a width of 12,288,
# trained to predict the next word. Its architecture is that of GPT-2, and so we can count its parameters
# without making them. The book says 175 billion.

# %%
gpt3 = jaxgpt.GPTConfig(layers=96, heads=96, width=12_288, context=2048)
assert_printed(round(count_parameters(gpt3) / 1e9), 175)
print(f"GPT-3: {count_parameters(gpt3):,} parameters")
print(f"the smallest GPT-2: {count_parameters(jaxgpt.GPTConfig()):,}")

# %% [markdown]
# ## 1.2 Decoder, encoder, and both
#
# The original Transformer has two parts. Its **encoder** reads a whole sentence, and its **decoder** writes a
# translation, one word after another, looking at what the encoder read. GPT is a decoder alone. BERT is an
# encoder alone. In jaxgpt all of them are a few pure functions over plain dicts, and they share attention,
# MLP and LayerNorm. These are small ones.

# %%
shape = {"layers": 2, "heads": 4, "width": 32}
decoder_only = jaxgpt.define(jaxgpt.GPTConfig(vocab=16, context=8, vocab_multiple=1, **shape))
encoder_only = encoder.define(EncoderConfig(vocab=16, context=8, **shape))
both = seq2seq.define(Seq2SeqConfig(vocab=16, **shape))
keys = jax.random.split(jax.random.key(0), 3)
models = {"GPT": decoder_only, "BERT": encoder_only, "the original Transformer": both}
small = {name: jax.jit(model.init)(key) for (name, model), key in zip(models.items(), keys, strict=True)}
for name, params in small.items():
    print(f"{name}: {', '.join(params)}; {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

# %% [markdown]
# Who sees whom? We ask for the gradient of what a model says at one position with respect to the embedding
# of each word that it reads. Where it is zero, the position cannot see that word. Every word here is another
# one, so that each row of the embedding table belongs to one place.

# %%
source_BS, inputs_BT = jnp.arange(1, 7)[None], jnp.arange(8, 14)[None]
says = {
    "GPT": lambda params: decoder_only.apply(params, source_BS),
    "BERT": lambda params: encoder_only.apply(params, source_BS),
    "the original Transformer": lambda params: both.decode(params, inputs_BT, both.encode(params, source_BS)),
}


def influence(name):
    """How much each word matters to what the model says at each position."""

    def said(wte_VD, at):
        logits_BTV = says[name](small[name] | {"wte": {"embedding": wte_VD}})
        return jnp.square(logits_BTV[0, at, 15])  # the score of a word that is not there

    gradient = jax.jit(jax.vmap(jax.grad(said), in_axes=(None, 0)))
    return np.abs(gradient(small[name]["wte"]["embedding"], jnp.arange(6))).sum(axis=-1)


# %%
read = {"GPT": source_BS[0], "BERT": source_BS[0]}
read["the original Transformer"] = jnp.concatenate([source_BS[0], inputs_BT[0]])
seen = {name: influence(name)[:, words] > 0 for name, words in read.items()}
figure, axes = plt.subplots(
    1, 3, figsize=(10, 2.9), width_ratios=[6, 6, 12], layout="constrained", sharey=True
)
for axis, (name, seen_TS) in zip(axes, seen.items(), strict=True):
    axis.imshow(seen_TS, cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=name, xlabel="word that is read", xticks=range(seen_TS.shape[1]), yticks=range(6))
axes[0].set_ylabel("position that answers")
axes[2].axvline(5.5, color="black")
axes[2].set_xticks(range(12), [f"s{n}" for n in range(6)] + [f"t{n}" for n in range(6)])
plt.show()

# %% [markdown]
# GPT sees what stands to the left, and so it can write. BERT sees everything, and so it can judge, but not
# write: it would see the answer. The Transformer's decoder sees the whole source (s) and its own target (t)
# up to where it is.

# %%
np.testing.assert_array_equal(seen["GPT"], np.tril(np.ones((6, 6), bool)))
assert seen["BERT"].all()
np.testing.assert_array_equal(seen["the original Transformer"][:, :6], np.ones((6, 6), bool))
np.testing.assert_array_equal(seen["the original Transformer"][:, 6:], np.tril(np.ones((6, 6), bool)))

# %% [markdown]
# ## 1.3 BERT: guess the hidden words
#
# BERT is trained to fill gaps, and so it learns from plain text as GPT does. We train a tokenizer of 400
# tokens on the language reference: letters, the commonest words, and pieces of the others. With more tokens,
# it would take hours until the model had seen each of them often enough. A twentieth of the documents is kept
# for testing.

# %%
tokenizer = bpe.train(iter(documents.values()), 400)
encoded = {topic: np.array(tokenizer.encode(text), np.int32) for topic, text in documents.items()}
test_topics = sorted(documents)[10::20]
train_ids = np.concatenate([ids for topic, ids in encoded.items() if topic not in test_topics])
test_ids = np.concatenate([encoded[topic] for topic in test_topics])
MASK, PADDING = tokenizer.vocab, tokenizer.vocab + 1
print(f"{len(train_ids):,} tokens for training, {len(test_ids):,} for testing")

# %% [markdown]
# Of every text, 15% of the tokens are chosen. Of these, 80% become the mask, 10% become a random token, and
# 10% stay as they are. The model must say of each of them what it was.

# %%
LENGTH = 16


def hidden_words(ids, seed):
    """Batches of windows of a text, with hidden words."""
    windows = TrainingBatches(
        TokenStream.of(ids), context=LENGTH, stride=LENGTH, sequences=64, seed=seed, vocab=tokenizer.vocab
    )
    return MaskedWords(plain=windows.rows, words=tokenizer.vocab, mask=MASK, seed=seed)


def shown(ids):
    """A text with the mask in it."""
    return "".join("[MASK]" if id == MASK else tokenizer.decode([id]) for id in ids)


# %%
training = hidden_words(train_ids, seed=0)
example = training.rows(0, 0, 1)
print("text:    ", repr(tokenizer.decode(example.targets_BT[0])))
print("it reads:", repr(shown(example.inputs_BT[0])))
print("to guess:", [tokenizer.decode([id]) for id in example.targets_BT[0, example.weights_BT[0] > 0]])

# %% [markdown]
# The loss is the cross-entropy of the chosen tokens: it is GPT's loss, with a weight of 0 for all others.
# `fit` trains with the same step, optimizer and loop as every run of jaxgpt.

# %%
config = EncoderConfig(
    vocab=tokenizer.vocab + 2, padding=PADDING, context=LENGTH, layers=1, heads=4, width=128
)
bert = encoder.define(config)


def drawn(key):
    """New weights, four times as large as BERT's: its 0.02 suits a width of 768 and not one of 128."""

    def larger(path, leaf):
        return 4 * leaf if path[-1].key in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(larger, jax.jit(bert.init)(key))


# %%
optim = OptimConfig(learning_rate=3e-3, warmup_steps=word_steps // 10, weight_decay=0.01)
trained = fit(
    drawn(jax.random.key(0)),
    next_token_loss(bert),
    training.rows,
    steps=word_steps,
    sequences=64,
    optim=optim,
)

# %%
plt.figure(figsize=(6, 3))
plt.plot([row["step"] for row in trained.rows], [row["loss"] for row in trained.rows])
plt.xlabel("step")
plt.ylabel("loss (nats a hidden word)")
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# How often is the guess right, in documents that it was not trained on? The most frequent token is right now
# and then; that is what a model without any understanding would reach.

# %%
guess = jax.jit(lambda params, tokens_BT: bert.apply(params, tokens_BT).argmax(axis=-1))
tests = [hidden_words(test_ids, seed=1).rows(step, 0, 128) for step in range(4)]
chosen = [batch.weights_BT > 0 for batch in tests]
answers = np.concatenate([batch.targets_BT[at] for batch, at in zip(tests, chosen, strict=True)])
guesses = np.concatenate(
    [np.asarray(guess(trained.params, batch.inputs_BT))[at] for batch, at in zip(tests, chosen, strict=True)]
)
frequent = np.bincount(train_ids).argmax()
right_share, frequent_share = (guesses == answers).mean(), (answers == frequent).mean()
print(f"right: {right_share:.1%}; the most frequent token would be right in {frequent_share:.1%}")
assert right_share > 3 * frequent_share

# %% [markdown]
# What it guesses, word for word. The context on both sides counts: the words behind a gap say as much about
# it as those before it.

# %%
ids = np.array(tokenizer.encode(" The following statement is used to define a function. It returns a value"))
gaps = [at for at, id in enumerate(ids) if tokenizer.decode([id]).strip() in ("is", "to", "a", "value")]
for at in gaps:
    gap_T = np.where(np.arange(len(ids)) == at, MASK, ids)
    logits_V = bert.apply(trained.params, gap_T[None])[0, at]
    best = [tokenizer.decode([int(id)]) for id in jax.lax.top_k(logits_V, 3)[1]]
    print(f"{shown(gap_T)}\n    it was {tokenizer.decode([ids[at]])!r}, guessed: {best}")

# %% [markdown]
# ## 1.4 BERT as a classifier
#
# An encoder that has read much needs few labels. The question here is whether a text makes sense: it is
# either a piece of the language reference, or the tokens of such a piece in a random order. There are 800
# texts with a label to learn from, and 500 others to test on, from documents that the model has not seen.


# %%
def labelled(ids, count):
    """Texts of LENGTH tokens: so many as they are (label 0), and so many shuffled (label 1)."""
    draw = np.random.default_rng(0)
    texts = draw.permutation(ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH))[: 2 * count]
    texts[count:] = draw.permuted(texts[count:], axis=1)
    return Encoded(texts.tolist(), [0] * count + [1] * count, cut=0)


learn, test = labelled(train_ids, 400), labelled(test_ids, 250)
for number in (0, 400):
    print(f"label {learn.labels[number]}: {tokenizer.decode(learn.ids[number])!r}")

# %% [markdown]
# The classifier gets a new head, which reads the mean of all states. Everything else comes from the guessing
# of hidden words or, to compare, from random numbers.

# %%
classifier = encoder.define(dataclasses.replace(config, classes=2))
form = Rows(context=LENGTH, padding=PADDING, length=LENGTH)
rows = TrainingTexts(learn, form, sequences=32, seed=0).rows
head = jax.jit(classifier.init)(jax.random.key(1))
begins = {"random weights": head | drawn(jax.random.key(2)), "hidden words": head | trained.params}
optim = OptimConfig(learning_rate=1e-3, warmup_steps=10, weight_decay=0.01)
batch, shares = form.batch(test, range(len(test.ids)), LENGTH), {}
for name, params in begins.items():
    tuned = fit(params, class_loss(classifier, "mean"), rows, steps=300, sequences=32, optim=optim)
    logits_BC = class_logits(classifier, tuned.params, batch, "mean")
    shares[name] = float((logits_BC.argmax(axis=-1) == batch.label_B).mean())
    print(f"begun from {name}: right in {shares[name]:.1%}; guessing gives 50%")
assert shares["hidden words"] > 0.75 and shares["random weights"] < 0.65

# %% [markdown]
# From the labels alone the model learns nothing that holds for new texts. Which words go together, it knows
# from guessing hidden words. That is what BERT showed in 2018: first learn from plain text, then from few
# labels. GPT does the same, and chapter 6 makes use of it.

# %% [markdown]
# ## 1.5 From one sequence to another
#
# The Transformer was made for translation. The smallest tasks of that kind are to copy a sequence of random
# letters, and to reverse it. Letters are numbers from 3 on; 1 begins a target, and 2 ends source and target.

# %%
data = {task: Sequences(task=task, longest=longest) for task in ("copy", "reverse")}
for task, sequences in data.items():
    example = sequences.rows(0, 0, 1)
    for name, rows_BT in zip(("source", "inputs", "targets"), example, strict=False):
        print(f"{task:8} {name:8}", *rows_BT[0].tolist())

# %% [markdown]
# Three models learn both. Two are recurrent: a GRU reads the source and keeps it in one state of a fixed
# size, and another GRU writes from that state. One of them may also look back at all states of the reader;
# that is how attention began (Bahdanau, 2014). The third is the Transformer, which has nothing but attention.

# %%
width, vocab = 64, data["copy"].vocab
made = {
    "GRU": rnn.define(RNNConfig(vocab=vocab, width=width, attention=False)),
    "GRU with attention": rnn.define(RNNConfig(vocab=vocab, width=width)),
    "Transformer": seq2seq.define(Seq2SeqConfig(vocab=vocab, layers=2, heads=4, width=width)),
}
rates = {"GRU": 5e-3, "GRU with attention": 5e-3, "Transformer": 2e-3}
learned = {}
for name, model in made.items():
    params, loss = jax.jit(model.init)(jax.random.key(0)), translation_loss(model)
    optim = OptimConfig(learning_rate=rates[name], warmup_steps=100, weight_decay=0.0)
    for task in data:
        steps, rows = sequence_steps[name], data[task].rows
        learned[task, name] = fit(params, loss, rows, steps=steps, sequences=64, optim=optim)
    print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
for axis, task in zip(axes, data, strict=True):
    for name in made:
        rows = learned[task, name].rows
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=name)
    axis.set(title=task, xlabel="step")
    axis.grid(alpha=0.3)
axes[0].set_ylabel("loss (nats a letter)")
axes[0].legend()
plt.show()

# %% [markdown]
# Now they write the answers to new sequences. An answer counts where every letter is right.

# %%
counted = [*range(1, longest + 1, 3)]
accuracy = {}
for task, name in learned:
    for length in counted:
        new = data[task].of_length(length, 100)
        written_BT = seq2seq.write(made[name], learned[task, name].params, new.source_BS, BEGIN, longest + 1)
        share = right(np.asarray(written_BT), new.targets_BT).mean()
        accuracy.setdefault((task, name), []).append(share)

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for axis, task in zip(axes, data, strict=True):
    for name, mark in zip(made, "osv", strict=True):
        axis.plot(counted, accuracy[task, name], marker=mark, label=name)
    axis.set(title=task, xlabel="letters in the sequence", ylim=(-0.03, 1.06))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("share without a mistake")
axes[0].legend(loc="center right")
plt.show()
for (_, name), shares in accuracy.items():
    if name == "GRU":
        assert shares[0] > 0.9 and shares[-1] < 0.2, "one state is too small for long sequences"
    else:
        assert min(shares) > 0.8

# %% [markdown]
# Without attention, everything must go through one state of 64 numbers, and long sequences do not fit into
# it. With attention, the length hardly matters. The weights of attention show why: at each letter that it
# writes, the decoder that reverses looks at the letter's place in the source, from the last to the first.

# %%
one = data["reverse"].of_length(longest, 1)
look = rnn.alignment(RNNConfig(vocab=vocab, width=width))
weights_TS = look(learned["reverse", "GRU with attention"].params, one.source_BS, one.inputs_BT)[0]
letters = ["." if id == 2 else chr(ord("a") + id - 3) for id in one.source_BS[0]]
figure, axis = plt.subplots(figsize=(4.6, 4), layout="constrained")
axis.imshow(weights_TS, cmap="Blues", vmin=0, vmax=1)
axis.set_xticks(range(longest + 1), letters)
axis.set_yticks(range(longest + 1), [*letters[-2::-1], "."])
axis.set(xlabel="letter that is read", ylabel="letter that is written")
plt.show()

# %% [markdown]
# ## 1.6 Zero-shot and few-shot
#
# GPT-3's surprise was that a model which only predicts the next word can be given tasks in its prompt. A
# **zero-shot** prompt only says what to do. A **few-shot** prompt shows examples. `few_shot_prompt` writes
# both kinds, for any model that is large enough to follow them.

# %%
print(few_shot_prompt("cheese", instruction="Translate English to French."), end="\n----------\n")
pairs = [("sea otter", "loutre de mer"), ("peppermint", "menthe poivrée")]
print(few_shot_prompt("cheese", instruction="Translate English to French.", examples=pairs))

# %% [markdown]
# Where does this come from? A small GPT shows it, in a small world. Its texts have eight letters and four
# tasks: write the same letter, the next, the one before, or the opposite one. A text begins with the name of
# a task, or with a mark that says nothing, and goes on with pairs: a letter, and what the task makes of it.
# The model is trained to predict the next token and nothing else.

# %%
TASKS, UNNAMED, shots = ("same", "next", "before", "opposite"), 12, 6
made_of = np.stack([(np.arange(8) + step) % 8 for step in (0, 1, -1, 4)])


def tasks_of(step, start, stop, named=None):
    """Texts of 1 + 2 x shots tokens: letters are 0 to 7, names of tasks 8 to 11. Half of them have a name."""
    draw = np.random.default_rng((step, start))
    task_B = draw.integers(0, 4, stop - start)
    named_B = draw.random(stop - start) < 0.5 if named is None else np.full(stop - start, named)
    first_B1 = np.where(named_B, 8 + task_B, UNNAMED)[:, None]
    letters_BN = draw.integers(0, 8, (stop - start, shots))
    pairs_BNP = np.stack([letters_BN, made_of[task_B[:, None], letters_BN]], axis=-1)
    return shifted(np.concatenate([first_B1, pairs_BNP.reshape(stop - start, -1)], axis=1).astype(np.int32))


# %%
gpt = jaxgpt.define(
    jaxgpt.GPTConfig(vocab=13, context=2 * shots, layers=2, heads=4, width=64, vocab_multiple=1)
)
optim = OptimConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.0)
params = jax.jit(gpt.init)(jax.random.key(0))
predicts = fit(params, next_token_loss(gpt), tasks_of, steps=prompt_steps, sequences=64, optim=optim)

# %% [markdown]
# How often is it right, after how many examples? With the name of the task it needs none. Without the name,
# the first answer is a guess among four tasks, and after one example it knows what is asked. No weight
# changes meanwhile: it learns in its context.

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
curves = {}
for label, named in (("the task is named", True), ("only examples", False)):
    batch = tasks_of(10**6, 0, 1000, named=named)
    found_BT = np.asarray(gpt.apply(predicts.params, batch.inputs_BT).argmax(axis=-1))
    curves[label] = (found_BT == batch.targets_BT)[:, 1::2].mean(axis=0)
    axis.plot(range(shots), curves[label], marker="o", label=label)
axis.set(xlabel="examples in the prompt", ylabel="share of right answers", ylim=(0, 1.05))
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
assert curves["the task is named"].min() > 0.95
assert curves["only examples"][0] < 0.5 and curves["only examples"][1] > 0.9

# %% [markdown]
# ## What we have now
#
# Three architectures, and two ways to learn from plain text. The rest of the book, and of these notebooks, is
# about one of them: GPT, a decoder that predicts the next word. The next notebook begins where it begins:
# with text.
