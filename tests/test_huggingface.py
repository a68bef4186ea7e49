"""A config.json is understood or refused by name, every tensor is used, and we write what we read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxgpt
from jaxgpt.errors import DataError, MissingError
from jaxgpt.text.tokenizer_files import load_tokenizer
from jaxgpt.weights.formats.huggingface import open_huggingface, write_tokenizer
from jaxgpt.weights.formats.huggingface_config import FIELDS, REQUIRED, config_json, read_config_json
from jaxgpt.weights.formats.torch_zip import open_torch, write_torch

GOLDEN = Path(__file__).parent / "golden"


def copied(tmp_path: Path, name: str = "plain", **changes: object) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_all_misfits_are_listed_at_once(tmp_path: Path) -> None:
    folder = copied(tmp_path, n_layer=3, n_positions=9)
    change_tensors(folder, lambda tensors: tensors.update(score=np.zeros(3, np.float32)))
    with pytest.raises(DataError) as caught:
        open_huggingface(folder)
    for said in ("unknown tensor score", "no tensor h.2.ln_1.weight", "wpe.weight is [16, 20], not [9, 20]"):
        assert said in str(caught.value)


def test_all_problems_of_a_config_are_listed_at_once(tmp_path: Path) -> None:
    folder = copied(tmp_path, activation_function="quick_gelu", rope_theta=1e4, n_layer="2", n_head=True)
    with pytest.raises(DataError) as caught:
        read_config_json(folder / "config.json")
    for said in ("activation_function = quick_gelu", "rope_theta = 10000.0", "n_layer = 2", "n_head"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"add_cross_attention": True},
        {"model_type": "bert"},
        {"quantization_config": {"bits": 4}},
        {"pruned_heads": {"0": [1]}},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
        {"position_embedding_type": "relative_key"},
        {"alibi": True},
        {"multi_query": True},
        {"n_embd": 21},
        {"n_layer": 10**12},
        {"layer_norm_epsilon": -1.0},
        {"tie_word_embeddings": "yes"},
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(tmp_path: Path, change: dict) -> None:
    names = {"n_embd": "width", "n_layer": "layers"}
    with pytest.raises(DataError, match=names.get(next(iter(change)), next(iter(change)))):
        read_config_json(copied(tmp_path, **change) / "config.json")


ANYTHING = [
    None,
    -1,
    2.5,
    1e300,
    float("nan"),
    float("inf"),
    2**70,
    10**4000,
    "",
    "x",
    [],
    [[]],
    {},
    {"a": 1},
]
FINE = {key: [value for value in ANYTHING if value in fine] for key, fine in REQUIRED.items()}
FINE |= {"n_inner": [None], "layer_norm_epsilon": [2.5]}


@pytest.mark.parametrize("key", [*FIELDS, *REQUIRED])
def test_a_value_of_another_kind_or_size_is_refused(tmp_path: Path, key: str) -> None:
    path = copied(tmp_path) / "config.json"
    stored = json.loads(path.read_text())
    for value in ANYTHING:
        path.write_text(json.dumps(stored | {key: value}))
        if value in FINE.get(key, []):
            read_config_json(path)
            continue
        with pytest.raises(DataError) as caught:
            read_config_json(path)
        assert len(str(caught.value)) < 1000


# The keys of public config.json files, and of what transformers 2 to 5 save. None of them changes the logits.
COMMON = """
    activation_function architectures attn_pdrop bos_token_id embd_pdrop eos_token_id initializer_range
    layer_norm_epsilon model_type n_embd n_head n_layer n_positions resid_pdrop summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj vocab_size
"""
GENERATION = """
    bad_words_ids diversity_penalty do_sample early_stopping length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences repetition_penalty temperature
    top_k top_p
"""
PUBLIC_KEYS = {
    "gpt2": "n_ctx task_specific_params",
    "gpt2-medium": "n_ctx n_special predict_special_tokens task_specific_params",
    "gpt2-large": "n_ctx task_specific_params",
    "gpt2-xl": "n_ctx output_past task_specific_params",
    "distilgpt2": "n_ctx _num_labels id2label label2id task_specific_params",
    "DialoGPT": "n_ctx task_specific_params",
    "a fine-tuned one": """
        n_ctx n_inner _name_or_path gradient_checkpointing torchscript is_decoder scale_attn_weights
        tokenizer_class pad_token_id sep_token_id model_max_length
    """,
    "transformers 2": """
        n_ctx do_sample eos_token_ids finetuning_task is_decoder length_penalty max_length num_beams
        num_labels num_return_sequences output_attentions output_hidden_states output_past
        pruned_heads repetition_penalty temperature top_k top_p torchscript use_bfloat16 id2label
        label2id
    """,
    "transformers 3": "n_ctx n_inner gradient_checkpointing use_cache xla_device " + GENERATION,
    "transformers 4": """
        n_ctx n_inner reorder_and_upcast_attn scale_attn_by_inverse_layer_idx scale_attn_weights
        torch_dtype transformers_version use_cache _attn_implementation_autoset
    """,
    "all of transformers 4": """
        n_ctx n_inner _name_or_path add_cross_attention begin_suppress_tokens chunk_size_feed_forward
        cross_attention_hidden_size decoder_start_token_id encoder_no_repeat_ngram_size
        exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
        id2label is_decoder is_encoder_decoder label2id output_attentions output_hidden_states
        output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values
        reorder_and_upcast_attn return_dict return_dict_in_generate scale_attn_by_inverse_layer_idx
        scale_attn_weights sep_token_id suppress_tokens task_specific_params tf_legacy_loss
        tie_encoder_decoder tie_word_embeddings tokenizer_class torch_dtype torchscript typical_p
        use_bfloat16 use_cache
    """
    + GENERATION,
    "transformers 5": """
        add_cross_attention dtype n_inner pad_token_id reorder_and_upcast_attn
        scale_attn_by_inverse_layer_idx scale_attn_weights tie_word_embeddings transformers_version
        use_cache
    """,
}
VALUES = {
    "pruned_heads": {},
    "n_inner": None,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "task_specific_params": {"conversational": {"max_length": 1000}},
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "n_ctx": 99,  # n_positions decides
}


@pytest.mark.parametrize("name", PUBLIC_KEYS)
def test_the_keys_of_public_files_are_passed_over_without_a_word(tmp_path: Path, name: str) -> None:
    plain = open_huggingface(GOLDEN / "plain")
    stated = json.loads((GOLDEN / "plain" / "config.json").read_text())
    keys = (COMMON + PUBLIC_KEYS[name]).split()
    folder = copied(tmp_path)
    table = {key: VALUES.get(key, stated.get(key, True)) for key in keys}
    (folder / "config.json").write_text(json.dumps(table))
    found = open_huggingface(folder)
    assert found.config == plain.config and found.notes == () and found.tensors.keys() == plain.tensors.keys()


def test_keys_that_nobody_knows_change_nothing_and_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, condition_on_species=True, **{"line\nbreak": 1})
    found = open_huggingface(folder)
    assert found.config == open_huggingface(GOLDEN / "plain").config
    assert found.notes == (
        "config.json has keys that change nothing in a GPT-2: condition_on_species, 'line\\nbreak'",
    )
    with pytest.warns(UserWarning, match="keys that change nothing in a GPT-2: condition_on_species"):
        jaxgpt.load(folder)


def test_keys_without_effect_are_listed_at_debug_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", "jaxgpt"):
        read_config_json(copied(tmp_path, resid_pdrop=0.3) / "config.json")
    assert "'resid_pdrop': 0.3" in caplog.text


@pytest.mark.parametrize("name", ["plain", "odd", "scaled", "untied", "classifier"])
def test_the_config_we_write_reads_back(tmp_path: Path, name: str) -> None:
    config, head, _ = read_config_json(GOLDEN / name / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, head)))
    assert read_config_json(tmp_path / "config.json") == (config, head, ())


def test_mask_buffers_of_older_files_are_passed_over(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    before = open_huggingface(folder)
    masks = {f"transformer.h.{n}.attn.bias": np.tril(np.ones((1, 1, 16, 16), np.uint8)) for n in range(2)}
    masks |= {"transformer.h.0.attn.masked_bias": np.float32(-1e4)[None]}
    change_tensors(folder, lambda tensors: tensors.update(masks))
    assert open_huggingface(folder).tensors.keys() == before.tensors.keys()


def test_a_stored_tied_head_must_be_the_embedding(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].copy()}))
    open_huggingface(folder).tensors["wte.weight"].read()
    change_tensors(folder, lambda t: t["lm_head.weight"].__setitem__((3, 4), 0.5))
    with pytest.raises(DataError, match=r"two output heads .* lm_head\.weight is not wte\.weight"):
        open_huggingface(folder).tensors["wte.weight"].read()


def test_of_a_tied_pair_the_head_may_be_the_one_that_is_stored(tmp_path: Path) -> None:
    """As safetensors' save_model leaves it."""
    folder = copied(tmp_path)
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop("transformer.wte.weight")}))
    found, expected = open_huggingface(folder).tensors, open_huggingface(GOLDEN / "plain").tensors
    assert found.keys() == expected.keys()
    np.testing.assert_array_equal(found["wte.weight"].read(), expected["wte.weight"].read())


def test_a_tensor_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change_tensors(folder, lambda t: t.update({"ln_f.bias": t["transformer.ln_f.bias"].copy()}))
    with pytest.raises(DataError, match=r"tensor ln_f\.bias twice"):
        open_huggingface(folder)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"config\.json"):
        open_huggingface(tmp_path)
    folder = copied(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        open_huggingface(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"not a config\.json"):
        open_huggingface(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, "sharded")
    (folder / "model-00002-of-00013.safetensors").unlink()
    with pytest.raises(MissingError, match=r"model-00002-of-00013\.safetensors not found"):
        open_huggingface(folder)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../../etc/passwd"}}', "{}", '{"weight_map": {"a": 3}}', "[]"]
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(tmp_path: Path, index: str) -> None:
    folder = copied(tmp_path, "sharded")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(DataError, match="not an index of weights"):
        open_huggingface(folder)


def test_the_tokenizer_files_say_the_same_merges(tmp_path: Path) -> None:
    write_tokenizer(load_tokenizer("gpt2"), 1024, tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert vocab == model["vocab"] and len(vocab) == 50257 and vocab["<|endoftext|>"] == 50256
    assert merges[0] == "#version: 0.2" and merges[1:] == model["merges"] and merges[1] == "Ġ t"


def test_torch_files_in_shards_are_read_as_one(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "bin" / "config.json", tmp_path)
    whole = open_torch(GOLDEN / "bin" / "pytorch_model.bin")
    files = {
        name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(sorted(whole))
    }
    for file in set(files.values()):
        write_torch(tmp_path / file, {name: whole[name] for name in whole if files[name] == file})
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    found, expected = open_huggingface(tmp_path), open_huggingface(GOLDEN / "bin")
    assert found.config == expected.config and found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read())
