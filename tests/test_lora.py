"""Adapters (LoRA): what they compute, how they train, and what a run of them keeps and refuses."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import exit_code
from flax import nnx
from jax import Array
from small_runs import logged, saved_model, table_of

import jaxgpt
from jaxgpt.config import ClassifyConfig, GPTConfig, LoraConfig, MeshConfig, OptimConfig
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.finetuning.chosen import chosen_of
from jaxgpt.finetuning.classifier import load_classifier
from jaxgpt.model.blockwise import blocks
from jaxgpt.model.dropout import drop
from jaxgpt.model.gpt import Params, define
from jaxgpt.model.lora import LoraLayers, LoraLinear, divided, joined_qkv, merged, unmerged
from jaxgpt.parallel import by_path, mesh_of, shardings
from jaxgpt.text.batch import Batch
from jaxgpt.training.loss import next_token_loss
from jaxgpt.training.optim import learning_rate, optimizer_of
from jaxgpt.training.state import create_state, train_step
from jaxgpt.weights.adapted import open_adapter
from jaxgpt.weights.checkpoint import latest_step, read_meta

EVERYWHERE = LoraConfig(rank=3, alpha=6, targets=".*", dropout=0.5)
TEXTS = [(f"{a} plus {b}", "sum") for a in range(6) for b in range(6)]
TEXTS += [(f"a tale of {a} and {b}", "tale") for a in range(6) for b in range(6)]
SHORT = ["--batch", "8", "--eval-every", "0", "--log-every", "1", "--optim.learning-rate", "0.02"]
SHORT += ["--data.val-fraction", "0", "--data.test-fraction", "0"]
LORA = ["--trains", "lora", "--lora.rank", "2", "--lora.targets", "attn/.*", "--lora.dropout", "0.1"]


# --- what adapters compute


@pytest.fixture(scope="module")
def adapted(config: GPTConfig, params: Params) -> Params:
    """The parameters with a fresh adapter on every linear layer."""
    new = jax.jit(define(config, layers=LoraLayers(EVERYWHERE)).init)(jax.random.key(1))
    return with_adapter(params, divided(new)[1])


def with_adapter(params: Params, adapter: Params) -> Params:
    found = dict(params)
    for name, node in adapter.items():
        found[name] = with_adapter(params[name], node) if isinstance(node, dict) else node
    return found


def moved(adapter: Params) -> Params:
    """The adapter with another number in every place of B, as after training."""
    return jax.tree_util.tree_map_with_path(
        lambda place, leaf: (
            leaf + 0.1 * jax.random.normal(jax.random.key(len(str(place))), leaf.shape)
            if "lora_B" in str(place)
            else leaf
        ),
        adapter,
    )


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_what_its_product_changes(
    config: GPTConfig, params: Params, adapted: Params, tokens_BT: np.ndarray
) -> None:
    plain, fresh = divided(adapted)
    assert set(by_path(fresh)) == {
        f"h/{room}/{name}/lora_{letter}"
        for room, name in (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj"))
        for letter in "AB"
    }
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    ours = jax.jit(define(config, layers=LoraLayers(EVERYWHERE)).apply)
    theirs = jax.jit(define(config).apply)
    np.testing.assert_array_equal(ours(adapted, tokens_BT), theirs(params, tokens_BT))
    trained = moved(fresh)
    unmerged_logits = ours(with_adapter(params, trained), tokens_BT)
    assert np.abs(unmerged_logits - theirs(params, tokens_BT)).max() > 0.1
    together = merged(params, trained, EVERYWHERE)
    np.testing.assert_allclose(theirs(together, tokens_BT), unmerged_logits, rtol=0, atol=1e-5)
    apart = unmerged(together, trained, EVERYWHERE)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), apart, params)
    kernel = params["h"]["mlp"]["c_fc"]["kernel"]
    product = trained["h"]["mlp"]["c_fc"]["lora_A"] @ trained["h"]["mlp"]["c_fc"]["lora_B"]
    np.testing.assert_allclose(together["h"]["mlp"]["c_fc"]["kernel"], kernel + 2 * product, atol=1e-6)


def test_the_scale_is_alpha_over_the_rank_or_over_its_root() -> None:
    assert LoraConfig(rank=4, alpha=8).scale == 2
    assert LoraConfig(rank=4, alpha=8, rslora=True).scale == 4


def test_dropout_is_of_the_adapters_input_alone(config: GPTConfig) -> None:
    layer = LoraLinear(config, 6, (5,), nnx.Rngs(0), std=0.02, bias=True, lora=EVERYWHERE)
    layer.lora_B[...] = jax.random.normal(jax.random.key(1), (3, 5))
    x, key = jax.random.normal(jax.random.key(2), (2, 4, 6)), jax.random.key(3)
    dropped = drop(x.reshape(8, 6), 0.5, key).reshape(2, 4, 6)
    change = 2 * dropped @ layer.lora_A[...] @ layer.lora_B[...]
    expected = x @ layer.kernel[...] + layer.bias[...][None, None] + change
    np.testing.assert_allclose(layer(x, key=key), expected, atol=1e-6)
    assert np.abs(layer(x) - layer(x, key=key)).max() > 0.1


def test_every_layer_drops_other_values(config: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def recorded(*arrays: Array, key: Array, **how: Any) -> Array:
        keys.append(jax.random.fold_in(key, 0))  # that of the only block of queries
        return blocks(*arrays, key=key, **how)

    monkeypatch.setattr("jaxgpt.model.lora.drop", lambda x, rate, key: keys.append(key) or x)
    monkeypatch.setattr("jaxgpt.model.attend.blocks", recorded)
    monkeypatch.setattr("jaxgpt.model.block.drop", lambda x, rate, key: keys.append(key) or x)
    two = dataclasses.replace(config, layers=2, dropout=0.1)
    model = define(two, layers=LoraLayers(EVERYWHERE), unrolled=True)

    def drawn(key: Array) -> Array:
        model.apply(model.init(key), np.zeros((1, 2), np.int32), key=key)
        return jnp.stack([jax.random.key_data(each) for each in keys])

    found = jax.jit(drawn)(jax.random.key(0))
    assert len(np.unique(found, axis=0)) == len(found) == 2 * (4 + 3)


def test_three_adapters_of_query_key_and_value_are_one_of_c_attn(config: GPTConfig, params: Params) -> None:
    """The book's model has three layers where GPT-2 has one, and gives each an adapter of its own."""
    draw = np.random.default_rng(0)
    N, D, r, alpha = config.layers, config.width, 4, 8.0
    parts = [
        {
            "lora_A": jnp.asarray(draw.normal(size=(N, D, r))),
            "lora_B": jnp.asarray(draw.normal(size=(N, r, D))),
        }
        for _ in range(3)
    ]
    joined = {"h": {"attn": {"c_attn": joined_qkv(*parts)}}}
    for rslora, together in ((False, 3 * alpha), (True, 3**0.5 * alpha)):
        own = LoraConfig(rank=r, alpha=alpha, rslora=rslora)
        kernel = params["h"]["attn"]["c_attn"]["kernel"]
        expected = np.stack(
            [kernel[:, :, n] + own.scale * (part["lora_A"] @ part["lora_B"]) for n, part in enumerate(parts)],
            2,
        )
        lora = LoraConfig(rank=3 * r, alpha=together, rslora=rslora)
        found = merged(params, joined, lora)["h"]["attn"]["c_attn"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


# --- how they train


@pytest.mark.parametrize("layers", [pytest.param(None, marks=pytest.mark.exhaustive), "1:3"])
def test_only_adapters_train_have_moments_and_change(
    config: GPTConfig, adapted: Params, tokens_BT: np.ndarray, layers: str | None
) -> None:
    chosen = chosen_of(ClassifyConfig(trains="lora", layers=layers))
    assert chosen.alone
    model, optim = define(config, layers=LoraLayers(EVERYWHERE)), OptimConfig(learning_rate=0.1)
    schedule = learning_rate(optim, 2)
    optimizer, mesh = optimizer_of(optim, schedule), mesh_of(MeshConfig(data=1, fsdp=4, tensor=2))
    copies = jax.tree.map(jnp.array, adapted)  # they are used up
    given = jax.device_put(copies, shardings(copies, mesh))
    state = create_state(model, optimizer, 0, mesh, params=given, chosen=chosen)
    before = jax.tree.map(np.asarray, (state.frozen, state.trainable))
    one = jnp.ones(tokens_BT.shape, jnp.float32)
    step = functools.partial(train_step, loss=next_token_loss(model), optimizer=optimizer, schedule=schedule)
    after, _ = jax.jit(step)(state, Batch(tokens_BT, tokens_BT, one))
    jax.tree.map(np.testing.assert_array_equal, after.frozen, before[0])
    changed = by_path(jax.tree.map(lambda a, b: bool(np.any(a != b)), after.trainable, before[1]))
    assert set(changed) == {path for path in by_path(adapted) if "lora_" in path}
    assert all(changed[path] for path in changed if "lora_B" in path)
    moments = {path for path, leaf in by_path(after.opt_state).items() if leaf.ndim}
    assert moments and all("lora_" in path for path in moments)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(t)) for t in (after.opt_state, after.trainable)]
    assert sizes[0] - 2 * sizes[1] <= 3, "two moments of what trains, and counts of steps"
    if layers:
        assert {leaf.shape[0] for leaf in jax.tree.leaves(after.trainable)} == {2}


# --- what a run keeps


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "base", scale=3, layers=2, heads=1, width=8)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return table_of(tmp_path_factory.mktemp("table") / "texts.csv", TEXTS)


def finetune(base: Path, table: Path, out: Path, *more: object, code: int = 0) -> None:
    given = ["--from", base, "--data.path", table, "--out-dir", out, *SHORT, *LORA, *more]
    assert exit_code("finetune", "classify", *given) == code


@pytest.fixture(scope="module")
def run(base: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(base, table, out, "--steps", "12")
    return out


def unmerged_logits(run: Path, base: Path, tokens_BT: np.ndarray) -> Array:
    """Logits of the base with the adapter beside it, as the run trained it."""
    lm, adapter = jaxgpt.load(base), open_adapter(run)
    tree: Params = {}
    for path, leaf in adapter.leaves.items():
        node = tree
        for name in path.split("/")[:-1]:
            node = node.setdefault(name, {})
        node[path.rpartition("/")[2]] = leaf
    model = define(lm.config, layers=LoraLayers(adapter.lora))
    return jax.jit(model.apply)(with_adapter(lm.params, tree), tokens_BT)


def test_a_run_keeps_its_adapters_alone_and_loads_with_them_merged(run: Path, base: Path) -> None:
    step = latest_step(run / "checkpoints")
    items = {path.name for path in (run / "checkpoints" / str(step)).iterdir() if path.is_dir()}
    assert items == {"adapter", "rest", "meta"}
    named = read_meta(run / "checkpoints", step)["base"]
    assert named["name"] == str(base) and len(named["digest"]) == 64
    tokens_BT = np.random.default_rng(0).integers(0, 256, (2, 20), np.int32)
    expected = unmerged_logits(run, base, tokens_BT)
    plain = jaxgpt.load(base)
    assert np.abs(expected - plain.logits(tokens_BT)).max() > 0.1
    for lm in (jaxgpt.load(run), jaxgpt.load(base, adapter=run)):
        np.testing.assert_allclose(lm.logits(tokens_BT), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        for name in ("wte", "ln_f"):
            jax.tree.map(np.testing.assert_array_equal, lm.params[name], plain.params[name])
    labels = [found.label for found in jaxgpt.classify(run, ["3 plus 5", "a tale of 9 and 4"])]
    assert labels == ["sum", "tale"]


@pytest.mark.slow
def test_a_run_that_goes_on_equals_one_that_went_through(
    run: Path, base: Path, table: Path, tmp_path: Path
) -> None:
    for steps in (3, 12):
        finetune(base, table, tmp_path / "parts", "--steps", steps)
    assert len(logged(run)) == 12 and logged(run) == logged(tmp_path / "parts")
    ours, theirs = open_adapter(run), open_adapter(tmp_path / "parts")
    assert ours.leaves.keys() == theirs.leaves.keys()
    for path, leaf in ours.leaves.items():
        np.testing.assert_array_equal(leaf, theirs.leaves[path])
    np.testing.assert_array_equal(ours.score, theirs.score)


@pytest.mark.slow
def test_every_verb_takes_the_adapter_beside_its_base(run: Path, base: Path, tmp_path: Path, capsys) -> None:
    """Which then does what the run does, and not what the base does."""
    own, text = tmp_path / "run", tmp_path / "a text.txt"
    shutil.copytree(run, own)
    (own / "chat.json").write_text('{"chat": "phi3"}')
    (own / "test.jsonl").write_text('{"instruction": "3 plus 4", "input": "", "output": "7"}\n')
    text.write_text("A tale of 3 plus 4. " * 5)
    texts, lm = ["3 plus 5", "a tale of 9 and 4"], jaxgpt.load(run)
    assert jaxgpt.classify(base, texts, adapter=own) == jaxgpt.classify(run, texts)
    outputs = []
    for named in ([base, "--adapter", f"{own}@12"], [run]):
        assert exit_code("classify", *named, *texts, "--json") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and '"label": "tale"' in outputs[0]
    assert exit_code("classify", base, "a") == 65 and "no head for classes" in capsys.readouterr().err
    found, plain = jaxgpt.evaluate(base, adapter=own, data=text), jaxgpt.evaluate(base, data=text)
    assert found == jaxgpt.evaluate(lm, data=text) and found["val_loss"].value != plain["val_loss"].value
    figures = ["--data", text, "--json", tmp_path / "a.json"]
    assert exit_code("evaluate", base, "--adapter", own, *figures) == 0
    kept = json.loads((tmp_path / "a.json").read_text())
    assert (kept["model"], kept["adapter"]) == (str(base), str(own))
    assert kept["val_loss"] == found["val_loss"].value
    out = ["--out", tmp_path / "answers.json", "--max-new-tokens", "8"]
    assert exit_code("answer", base, "--adapter", f"{own}@12", *out) == 0
    [row] = json.loads((tmp_path / "answers.json").read_text())
    prompt = "<|user|>\n3 plus 4\n\n<|assistant|>\n"
    said, else_said = (
        each.generate(prompt, max_new_tokens=8, temperature=0) for each in (lm, jaxgpt.load(base))
    )
    assert row["instruction"] == "3 plus 4" and row["model_response"] == said.strip() != else_said.strip()
    for call in (
        lambda: jaxgpt.evaluate(lm, adapter=own, data=text),
        lambda: jaxgpt.classify(load_classifier(run), texts, adapter=own),
    ):
        with pytest.raises(ConfigError, match=r"of a loaded model: .*load\(MODEL, adapter=...\)"):
            call()


def test_another_base_is_refused(run: Path, base: Path, table: Path, tmp_path: Path, capsys) -> None:
    lm, elsewhere = jaxgpt.load(base), tmp_path / "base"
    bent = {**lm.params, "ln_f": {**lm.params["ln_f"], "bias": lm.params["ln_f"]["bias"] + 1e-3}}
    dataclasses.replace(lm, params=bent).save(tmp_path / "other")
    with pytest.raises(DataError, match=r"adapter of another base .*other are not those"):
        jaxgpt.load(tmp_path / "other", adapter=run)
    saved_model(tmp_path / "wide", heads=1, width=16)
    with pytest.raises(DataError, match=r"lora_A is \[2, 8, 2\], not \[2, 16, 2\].*changes layer 1"):
        jaxgpt.load(tmp_path / "wide", adapter=run)
    with pytest.raises(DataError, match="not an adapter"):
        jaxgpt.load(base, adapter=base)
    with pytest.raises(MissingError, match="no adapter"):
        jaxgpt.load(base, adapter=tmp_path / "nowhere")
    base.rename(elsewhere)
    try:
        with pytest.raises(MissingError, match=r"the adapter's base .* is not here"):
            jaxgpt.load(run)
        moved = jaxgpt.load(elsewhere, adapter=run)
        np.testing.assert_array_equal(moved.params["wte"]["embedding"], lm.params["wte"]["embedding"])
        (tmp_path / "other").rename(base)
        finetune(base, table, run, "--steps", "13", code=65)
        assert "adapter of another base" in capsys.readouterr().err
        shutil.rmtree(base)
    finally:
        elsewhere.rename(base)


def test_settings_that_make_no_adapter_are_refused(
    run: Path, base: Path, table: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"

    def refused(*more: object, code: int = 2) -> str:
        finetune(base, table, out, *more, code=code)
        assert not (out / "config.json").exists()
        return capsys.readouterr().err

    said = refused("--lora.targets", "attention")
    assert "lora.targets = attention" in said and "h/attn/c_attn, h/attn/c_proj" in said
    assert "rank = 0" in refused("--lora.rank", "0")
    assert "dropout = 1" in refused("--lora.dropout", "1")
    assert "targets = '('" in refused("--lora.targets", "(")
    assert "the model has layers 0 to 1" in refused("--layers", "1:3")
    finetune(run, table, out, code=2)
    assert "--to jaxgpt), and write --from MERGED" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--from MODEL"):
        jaxgpt.train("classify", {"trains": "lora", "data.path": str(table), "out_dir": str(out)})


def test_a_loaded_classifier_is_the_one_that_was_trained(run: Path) -> None:
    classifier, adapter = load_classifier(run), open_adapter(run)
    assert classifier.head.labels == ("sum", "tale")
    np.testing.assert_array_equal(classifier.params["score"]["kernel"], adapter.score)


@pytest.mark.slow
def test_instructions_are_learned_by_adapters_and_samples_are_written_with_them(
    base: Path, tmp_path: Path
) -> None:
    rows = [{"instruction": a + b, "input": "", "output": b + a} for a in "abcdef" for b in "abcdef"]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    settings: dict[str, Any] = {
        "init_from": str(base),
        "data.path": str(tmp_path / "rows.json"),
        "data.val_fraction": 0.2,
        "out_dir": str(tmp_path / "run"),
        "template": "phi3",
        "trains": "lora",
        "steps": 12,
        "eval_every": 12,
        "sample_tokens": 8,
        "optim.learning_rate": 0.02,
        "optim.ema_decay": 0.5,
    }
    done = jaxgpt.train("instruct", settings, progress=False)
    losses = [row["val_loss"] for row in done.metrics if "val_loss" in row]
    assert losses[1] < losses[0] - 0.1
    assert "average" in {path.name for path in (tmp_path / "run" / "checkpoints" / "12").iterdir()}
    assert np.any(
        done.model.params["h"]["attn"]["c_attn"]["kernel"]
        != jaxgpt.load(base).params["h"]["attn"]["c_attn"]["kernel"]
    )
