# %% [markdown]
# # 1. Understanding language models
#
# This notebook follows chapter 1 of "Build a Large Language Model (From Scratch)". It puts the architectures
# that the chapter tells of side by side: GPT, which predicts the next word; BERT, which guesses hidden words;
# the original Transformer, which makes one sequence from another; and the recurrent networks that came
# before. The last two are trained to reverse sequences. At the end a small GPT is given tasks that it solves
# from examples in its prompt.
#
# It needs no GPU and takes about two minutes.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
sequence_steps = {"GRU": 1000, "GRU with attention": 600, "Transformer": 600}
longest = 16  # letters in the longest sequence that is to be reversed
prompt_steps = 1500  # of training the small GPT on tasks

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.config import EncoderConfig, OptimConfig, RNNConfig, Seq2SeqConfig
from jaxgpt.inference.prompts import few_shot_prompt
from jaxgpt.model import encoder, rnn, seq2seq
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
# BERT is trained to fill gaps, and so it learns from plain text as GPT does. Of every text, 15% of the tokens
# are chosen. Of these, 80% become the mask, 10% become a random token, and 10% stay as they are. The model
# must say of each of them what it was. The loss is GPT's cross-entropy, with a weight of 0 for all others.

# %%
MASK = gpt2.vocab  # one id more than the tokenizer has
text = np.concatenate([gpt2.encode(documents[topic]) for topic in ("if", "for", "while")]).astype(np.int32)
windows = TrainingBatches(TokenStream.of(text), context=32, stride=32, sequences=4, seed=0, vocab=gpt2.vocab)
hidden = MaskedWords(plain=windows.rows, words=gpt2.vocab, mask=MASK, seed=0).rows(0, 0, 1)
read = "".join("[MASK]" if id == MASK else gpt2.decode([int(id)]) for id in hidden.inputs_BT[0])
chosen = hidden.weights_BT[0] > 0
print("text:    ", repr(gpt2.decode(hidden.targets_BT[0])))
print("it reads:", repr(read))
print("to guess:", [gpt2.decode([int(id)]) for id in hidden.targets_BT[0, chosen]])

# %% [markdown]
# The words behind a gap say as much about it as those before it, and an encoder sees both. It takes long,
# though, until a model has learned to use them: each text has only a few gaps to learn from. So we leave the
# training to machines larger than this one.

# %% [markdown]
# ## 1.4 From one sequence to another
#
# The Transformer was made for translation. The smallest task of that kind is to reverse a sequence of random
# letters. Letters are numbers from 3 on; 1 begins a target, and 2 ends source and target.

# %%
data = Sequences(task="reverse", longest=longest)
example = data.rows(0, 0, 3)
for name, rows_BT in zip(("source", "inputs", "targets"), example, strict=False):
    print(f"{name:8}", *rows_BT.tolist())

# %% [markdown]
# Three models learn it. Two are recurrent: a GRU reads the source and keeps it in one state of a fixed size,
# and another GRU writes from that state. One of them may also look back at all states of the reader; that is
# how attention began (Bahdanau, 2014). The third is the Transformer, which has nothing but attention.

# %%
width = 64
made = {
    "GRU": rnn.define(RNNConfig(vocab=data.vocab, width=width, attention=False)),
    "GRU with attention": rnn.define(RNNConfig(vocab=data.vocab, width=width)),
    "Transformer": seq2seq.define(Seq2SeqConfig(vocab=data.vocab, layers=2, heads=4, width=width)),
}
rates = {"GRU": 5e-3, "GRU with attention": 5e-3, "Transformer": 2e-3}
learned = {}
for name, model in made.items():
    optim = OptimConfig(learning_rate=rates[name], warmup_steps=100, weight_decay=0.0)
    params = jax.jit(model.init)(jax.random.key(0))
    loss, steps = translation_loss(model), sequence_steps[name]
    learned[name] = fit(params, loss, data.rows, steps=steps, sequences=64, optim=optim)
    print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, fitted in learned.items():
    axis.plot([row["step"] for row in fitted.rows], [row["loss"] for row in fitted.rows], label=name)
axis.set(xlabel="step", ylabel="loss (nats a letter)")
axis.grid(alpha=0.3)
axis.legend()
plt.show()

# %% [markdown]
# Now they write the reverse of new sequences. A sequence counts where every letter is right.

# %%
counted = [*range(1, longest + 1, 3)]
accuracy = {name: [] for name in made}
for name, model in made.items():
    for length in counted:
        new = data.of_length(length, 100)
        written_BT = seq2seq.write(model, learned[name].params, new.source_BS, BEGIN, longest + 1)
        accuracy[name].append(right(np.asarray(written_BT), new.targets_BT).mean())

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
for (name, shares), mark in zip(accuracy.items(), "osv", strict=True):
    axis.plot(counted, shares, marker=mark, label=name)
axis.set(xlabel="letters in the sequence", ylabel="share reversed without a mistake", ylim=(-0.03, 1.06))
axis.grid(alpha=0.3)
axis.legend(loc="lower left")
plt.show()
assert accuracy["GRU"][0] > 0.9 and accuracy["GRU"][-1] < 0.2, "one state is too small for long sequences"
assert min(accuracy["GRU with attention"] + accuracy["Transformer"]) > 0.8

# %% [markdown]
# Without attention, everything must go through one state of 64 numbers, and long sequences do not fit into
# it. With attention, the length hardly matters. The weights of attention show why: at each letter that it
# writes, the decoder looks at the letter's place in the source, from the last one to the first.

# %%
one = data.of_length(longest, 1)
look = rnn.alignment(RNNConfig(vocab=data.vocab, width=width))
weights_TS = look(learned["GRU with attention"].params, one.source_BS, one.inputs_BT)[0]
letters = ["." if id == 2 else chr(ord("a") + id - 3) for id in one.source_BS[0]]
figure, axis = plt.subplots(figsize=(4.6, 4), layout="constrained")
axis.imshow(weights_TS, cmap="Blues", vmin=0, vmax=1)
axis.set_xticks(range(longest + 1), letters)
axis.set_yticks(range(longest + 1), [*letters[-2::-1], "."])
axis.set(xlabel="letter that is read", ylabel="letter that is written")
plt.show()

# %% [markdown]
# ## 1.5 Zero-shot and few-shot
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
