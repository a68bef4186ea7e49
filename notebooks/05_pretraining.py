# %% [markdown]
# # 5. Pretraining
#
# This notebook follows chapter 5 of "Build a Large Language Model (From Scratch)". It measures how well a
# model predicts a text, trains small models and watches them learn and overfit, chooses the next token in
# several ways, and takes weights out of jaxgpt and into it.
#
# Where the book prints a number that can be had here, a cell computes it and stops if it is another one.
# docs/book.md lists these numbers, and says why for those that are missing.

# %%
# In Colab this cell installs jaxgpt. Elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxgpt") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "jaxgpt[plots]"], check=True)
    print("Now choose Runtime > Restart session in Colab's menu, and run this notebook from its first cell.")

# %% tags=["parameters"]
full_size = True  # whether to draw the book's 162 million weights (2 GB of memory, about a minute)
steps = 300  # of each training run

# %%
import math
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# %%
import jaxgpt
from jaxgpt.book.printed import assert_printed
from jaxgpt.book.torch_random import TorchGenerator
from jaxgpt.book.weights import book_params
from jaxgpt.evaluation.plots import loss_curves
from jaxgpt.inference.sampling import Plan, Sampling, filtered, settings_of
from jaxgpt.log import Best, latest, series
from jaxgpt.text.batch import shifted
from jaxgpt.text.corpus import builtin_documents
from jaxgpt.training.loss import cross_entropy, next_token_loss
from jaxgpt.weights.names import TABLE

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 5.1 How well does a model predict a text?
#
# We begin with the book's model as PyTorch draws it after `torch.manual_seed(123)`. Its context is 256
# tokens now. It has learned nothing, and what it writes is nonsense.

# %%
tokenizer = jaxgpt.load_tokenizer("gpt2")
if full_size:
    config = jaxgpt.load_recipe("book-ch05").model
    params = jax.tree.map(jnp.asarray, book_params(TorchGenerator(123), config))
    untrained = jaxgpt.LanguageModel(config, params, tokenizer)
    begin = "Every effort moves you"
    text = begin + untrained.generate(begin, max_new_tokens=10, temperature=0)
    assert_printed(text, "Every effort moves you rentingetic wasnم refres RexMeCHicular stren")
    print(text)

# %% [markdown]
# What should it have written? At every position of a text, the right next token is known: it stands there.
# The targets are the text itself, one token further on. These are the book's two examples.

# %%
windows = np.array([[16833, 3626, 6100, 345], [40, 1107, 588, 11311]], np.int32)
batch = shifted(windows)
for inputs, targets in zip(batch.inputs_BT, batch.targets_BT, strict=True):
    print(f"{tokenizer.decode(inputs)!r} -> {tokenizer.decode(targets)!r}")

# %% [markdown]
# The model gives a probability to every token of the vocabulary. The most probable ones are not the right
# ones, and the right ones have about the probability of any token, which would be 1/50,257 = 0.00002.

# %%
if full_size:
    probabilities_BTV = jax.nn.softmax(untrained.logits(batch.inputs_BT))
    chosen_BT = probabilities_BTV.argmax(axis=-1)
    assert_printed(chosen_BT[..., None], [[[16657], [339], [42826]], [[49906], [29669], [41751]]])
    assert_printed(tokenizer.decode(chosen_BT[0]), " Armed heNetflix")
    right_BT = jnp.take_along_axis(probabilities_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
    assert_printed(right_BT[0], [7.4540e-05, 3.1061e-05, 1.1563e-05], digits=9)
    assert_printed(right_BT[1], [1.0337e-05, 5.6776e-05, 4.7559e-06], digits=9)
    print(right_BT)

# %% [markdown]
# Training makes these probabilities larger. Logarithms turn their product into a sum, and the mean of the
# logarithms, with its sign changed, is the **loss**. It is called cross-entropy, and a model that gave the
# right tokens probability 1 would have a loss of 0. **Perplexity** is e to the power of the loss: a model
# with perplexity n is as unsure as one that draws from n tokens.

# %%
if full_size:
    logs_BT = jnp.log(right_BT)
    assert_printed(logs_BT.ravel(), [-9.5042, -10.3796, -11.3677, -11.4798, -9.7764, -12.2561])
    assert_printed(-logs_BT.mean(), 10.7940)
    assert_printed(math.exp(-logs_BT.mean()), 48725.8203, digits=0)

# %% [markdown]
# jaxgpt computes the same from the logits, without taking a logarithm of a rounded probability. Its
# training loss is the sum of this over a batch, and the number of predictions, from which the mean is made.

# %%
if full_size:
    by_hand = cross_entropy(untrained.logits(batch.inputs_BT), batch.targets_BT).mean()
    total, count, _ = jax.jit(next_token_loss(jaxgpt.define(config)))(params, batch, None)
    np.testing.assert_allclose([by_hand, total / count], -logs_BT.mean(), rtol=1e-6)
    print(f"loss {by_hand:.4f}, perplexity {math.exp(by_hand):,.2f} of {config.vocab:,} tokens")
    del untrained, params, probabilities_BTV

# %% [markdown]
# On the short story that the book trains on, this model begins with the losses 10.98758 (training) and
# 10.98111 (validation). The story is not part of this package. Once `jaxgpt prepare the-verdict --out
# data/verdict` has fetched it, the slow tests of `tests/test_book.py` compute both numbers.
#
# ## 5.2 Training
#
# We train small models on a text that every Python carries with it: its own language reference. The tokens
# are its bytes, so that the vocabulary is small too. Nine tenths of the text are for training, and the last
# tenth is for validation: it is never trained on, and so tells whether what was learned holds for other
# text.
#
# The first run gets only the first 20,000 characters, as the book trains on a short story of 20,479. The
# second gets everything.

# %%
everything = "\n".join(builtin_documents().values())
short = folder / "short.txt"
short.write_text(everything[:20_000], encoding="utf-8")
print(f"{len(everything):,} characters; the short text begins:\n{everything[:300]}")

# %% [markdown]
# `jaxgpt.train` takes a recipe and changes to it. It shows the loss, the validation loss every 25 steps,
# and a sample of what the model writes. A run that is stopped goes on when the same cell runs again.

# %%
settings = {
    "steps": steps,
    "batch": 16,
    "model.layers": 2,
    "model.context": 64,
    "eval_every": 25,
    "log_every": 5,
    "sample_tokens": 60,
    "checkpoint_every": steps,
}
on_little = jaxgpt.train("nano", settings | {"data.path": str(short)}, out_dir=str(folder / "little"))

# %%
on_much = jaxgpt.train("nano", settings, out_dir=str(folder / "much"))

# %% [markdown]
# The model that sees little text learns it by heart: its training loss falls on and on, while its
# validation loss stops falling and then rises. That is **overfitting**, and the book's run on its short
# story shows it too. With more than twenty times as much text, the two curves stay together.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True)
runs = {"20,000 characters": on_little, "all of the text": on_much}
for axis, (title, run) in zip(axes, runs.items(), strict=True):
    loss_curves(axis, run.metrics, unit="byte")
    axis.set_title(title)
    axis.label_outer()
plt.show()

# %%
gaps = [latest(run.metrics, "val_loss") - latest(run.metrics, "loss") for run in (on_little, on_much)]
assert gaps[0] > 0.5 > gaps[1], "the short text is overfitted, the long one is not"
print(f"validation loss minus training loss at the end: {gaps[0]:.2f} and {gaps[1]:.2f}")
print("on the short text,", Best.of(on_little.metrics, "val_loss"))

# %% [markdown]
# The samples get better with the loss. The log keeps those of every evaluation.

# %%
for step, sample in series(on_much.metrics, "sample")[:: max(1, steps // 80)]:
    print(f"step {step:3}: {sample!r}")

# %% [markdown]
# `jaxgpt.evaluate` measures a model on any text. With `protocol="book"` it averages as the book's
# `calc_loss_loader` does: over the means of batches.

# %%
held_out = folder / "held_out.txt"
held_out.write_text(everything[-20_000:], encoding="utf-8")
for protocol in ("tokens", "book"):
    figures = jaxgpt.evaluate(on_much.model, data=held_out, protocol=protocol)
    loss, perplexity = figures["val_loss"].value, figures["perplexity"].value
    assert math.isclose(perplexity, math.exp(loss))
    print(f"{protocol:6} loss {loss:.4f}, perplexity {perplexity:.3f}")

# %% [markdown]
# ## 5.3 Choosing the next token
#
# The book explains the choice with a vocabulary of nine words, and logits for the word behind "every effort
# moves you". Always taking the most probable word is called greedy decoding.

# %%
words = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]
logits_V = np.array([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79], np.float32)
assert_printed(words[logits_V.argmax()], "forward")

# %% [markdown]
# Drawing a word by its probability gives more variety. The book draws a thousand times with
# `torch.multinomial`, after seed 123. PyTorch lets every word run a race: word v needs a random time with
# mean 1/p(v), and the first one wins. Its random numbers give us the book's own counts.


# %%
def count_draws(temperature):
    """How often each word comes out of a thousand draws."""
    probabilities_V = np.asarray(jax.nn.softmax(logits_V / temperature))
    generator = TorchGenerator(123)
    draws = [generator.multinomial(probabilities_V) for _ in range(1000)]
    return np.bincount(draws, minlength=len(words))


assert_printed(count_draws(1), [73, 0, 0, 582, 2, 0, 0, 343, 0])

# %% [markdown]
# A **temperature** divides the logits before the softmax. Below 1 it makes probable words more probable
# still; above 1 it makes all words more alike, and after "every effort moves you", "pizza" comes out now
# and then.

# %%
assert_printed(count_draws(0.1), [0, 0, 0, 985, 0, 0, 0, 15, 0])
assert_printed(count_draws(5), [165, 75, 42, 239, 71, 46, 32, 227, 103])

# %%
places = np.arange(len(words))
plt.figure(figsize=(8, 3))
for number, temperature in enumerate((1, 0.1, 5)):
    probabilities_V = jax.nn.softmax(logits_V / temperature)
    plt.bar(places + 0.27 * (number - 1), probabilities_V, 0.27, label=f"temperature {temperature}")
plt.xticks(places, words)
plt.ylabel("probability")
plt.grid(alpha=0.3, axis="y")
plt.legend()
plt.show()

# %% [markdown]
# **Exercise 5.1** asks how often "pizza" is drawn at each temperature, and for a better way to know it than
# counting. It is drawn 0, 0 and 32 times of 1,000. Its probability needs no drawing at all.

# %%
pizza = words.index("pizza")
assert_printed([count_draws(temperature)[pizza] for temperature in (1, 0.1, 5)], [0, 0, 32])
assert_printed(jax.nn.softmax(logits_V / 5)[pizza], 0.0430)

# %% [markdown]
# **Top-k** sampling keeps the k most probable words only, so that improbable ones never come out, whatever
# the temperature. All others get a logit of minus infinity, which is a probability of 0.

# %%
top_values, top_places = jax.lax.top_k(logits_V, 3)
assert_printed(top_values, [6.75, 6.28, 4.51])
assert_printed(top_places, [3, 7, 0])
kept_V = jnp.where(logits_V >= top_values[-1], logits_V, -jnp.inf)
assert_printed(jax.nn.softmax(kept_V), [0.0615, 0.0, 0.0, 0.5775, 0.0, 0.0, 0.0, 0.3610, 0.0])

# %% [markdown]
# The sampler of jaxgpt does the same for every text that it writes at a time. It knows top-p and min-p as
# well, which keep as many tokens as have a certain probability.

# %%
sampling = Sampling(temperature=1.0, top_k=3)
ours_V = filtered(logits_V[None], settings_of([sampling]), Plan.of([sampling], "cpu"))[0]
np.testing.assert_allclose(jax.nn.softmax(ours_V), jax.nn.softmax(kept_V), atol=1e-6)

# %% [markdown]
# **Exercise 5.2** asks when low or high temperatures and values of k are useful. The trained model shows
# what they do: with a low temperature it repeats the most probable word, with a high one it writes bytes
# that make no text, and a small k keeps these out (`top_k=0` keeps all). Low values suit texts that must be
# right, such as answers and code. High values suit the search for ideas.

# %%
for temperature, top_k in ((0.1, 0), (0.8, 0), (0.8, 5), (2.0, 0), (2.0, 5)):
    text = on_much.model.generate("The ", max_new_tokens=60, temperature=temperature, top_k=top_k, seed=1)
    print(f"temperature {temperature}, top_k {top_k}: {text!r}")

# %% [markdown]
# **Exercise 5.3** asks for settings that always give the same text. There are three: temperature 0, k = 1,
# and one seed for every call.

# %%
write = on_much.model.generate
greedy = write("The ", max_new_tokens=30, temperature=0)
assert write("The ", max_new_tokens=30, temperature=1.0, top_k=1) == greedy
assert write("The ", max_new_tokens=30, seed=5) == write("The ", max_new_tokens=30, seed=5)
assert write("The ", max_new_tokens=30, seed=5) != write("The ", max_new_tokens=30, seed=6)

# %% [markdown]
# ## 5.4 Saving, loading, going on
#
# A run saves its weights and the state of its optimizer as it goes. `jaxgpt.load` reads the model of a run
# directory.

# %%
again = jaxgpt.load(folder / "much")
assert again.generate("The ", max_new_tokens=30, temperature=0) == greedy
print(sorted(path.name for path in (folder / "much").iterdir()))

# %% [markdown]
# **Exercise 5.4**: load model and optimizer, and train on. The same call with more steps does it. The steps
# that were done are not done again, and the optimizer goes on with the running means that it had.

# %%
longer = settings | {"steps": steps + 25}
on_more = jaxgpt.train("nano", longer, out_dir=str(folder / "much"))
assert [step for step, _ in series(on_more.metrics, "val_loss")][-2:] == [steps, steps + 25]

# %% [markdown]
# ## 5.5 Public weights, in and out
#
# GPT-2's weights are public, and every program that knows GPT-2 reads them in Hugging Face's layout: a
# folder with `config.json`, `model.safetensors` and the tokenizer. `save` writes our model so, and `load`
# reads it back, as it reads any other GPT-2.

# %%
exported = folder / "exported"
on_more.model.save(exported, format="huggingface")
imported = jaxgpt.load(exported)
tokens_BT = np.array([imported.tokenizer.encode("The standard library")])
np.testing.assert_allclose(imported.logits(tokens_BT), on_more.model.logits(tokens_BT), atol=1e-5)
print(sorted(path.name for path in exported.iterdir()))

# %% [markdown]
# The same weights have three names: ours, Hugging Face's and OpenAI's. One table translates them in both
# directions.

# %%
for ours, theirs, openai in TABLE[:6]:
    print(f"{ours:24} {theirs:24} {openai}")

# %% [markdown]
# For GPT-2 itself, `jaxgpt.load("gpt2")` downloads half a gigabyte from the Hugging Face hub, once. In a
# terminal:
#
#     jaxgpt generate gpt2 "Every effort moves you" --max-new-tokens 25 --top-k 50 --temperature 1.5
#
# **Exercise 5.5** asks for the losses of the pretrained model on the book's short story, and **exercise
# 5.6** for the texts of the largest model. These commands answer them. They were not run for this notebook,
# whose tests have no network. The first one reads the whole story in windows of the model's own context of
# 1,024 tokens, where the book's are of 256, so that its loss will not be exactly the book's 3.75 and 3.56.
#
#     jaxgpt evaluate gpt2 --data the-verdict.txt --protocol book
#     jaxgpt generate gpt2-xl "Every effort moves you" --max-new-tokens 25 --top-k 50 --temperature 1.5
#
# A loaded model is a beginning as good as any. Trained further on the short text, it starts with the loss
# that it had, far below that of a new model.

# %%
start = {"init_from": str(exported), "data.path": str(short), "optim.learning_rate": 1e-4}
options = {"steps": 20, "batch": 16, "eval_every": 0, "log_every": 1, "optim.warmup_steps": 0}
tuned = jaxgpt.train("nano", start | options, out_dir=str(folder / "tuned"))
first_losses = [series(run.metrics, "loss")[0][1] for run in (on_little, tuned)]
assert first_losses[1] < first_losses[0] - 2
print(f"first loss of a new model {first_losses[0]:.2f}, of the loaded one {first_losses[1]:.2f}")

# %% [markdown]
# Notebook D goes on with the training loop: warm-up, cosine decay and gradient clipping.
