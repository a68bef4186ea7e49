"""Hugging Face's config.json for GPT-2 becomes our GPTConfig, and the other way round.

The keys mean what they mean in transformers' GPT2Config and GPT2LMHeadModel. A key that changes what a model
computes is understood, or the file is refused. Any other key changes nothing. It is left out, and named in a
note unless transformers is known to write it.
"""

import json
import logging
from pathlib import Path
from typing import Any

from jaxgpt.config import GPTConfig
from jaxgpt.config.checks import field_types, fits
from jaxgpt.errors import DataError, MissingError
from jaxgpt.weights.formats.torch_storage import shown
from jaxgpt.weights.names import foreign_config, listed
from jaxgpt.weights.tensors import Head

logger = logging.getLogger(__name__)
CLASSIFIER = "GPT2ForSequenceClassification"

# config.json key -> our field
FIELDS = {
    "vocab_size": "vocab",
    "n_positions": "context",
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "width",
    "n_inner": "mlp_width",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "activation_function": "activation",
    "scale_attn_weights": "scale_attention",
    "scale_attn_by_inverse_layer_idx": "scale_by_inverse_layer",
    "tie_word_embeddings": "tied_head",
}
# Their names of activations and ours. Where several of theirs mean one of ours, we write the first.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
# Other keys that change the computation, with the values for which it is the same as ours. After those of
# GPT-2 come keys of models that are like it and compute something else, and of code in a repository itself.
REQUIRED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": ({}, None),
    "position_embedding_type": ("absolute", None),
    "alibi": (False, None),
    "rotary": (False, None),
    "rotary_dim": (None,),
    "rope_theta": (None,),
    "rope_scaling": (None,),
    "multi_query": (False, None),
    "parallel_attn": (False, None),
    "use_parallel_residual": (False, None),
    "sliding_window": (None,),
}
# Keys that transformers writes, or wrote once, about training, generation, classification heads or the file
# itself. They do not change the logits of the next token. (reorder_and_upcast_attn computes the same product
# in another order. n_ctx repeats n_positions, and where it differs n_positions decides.)
WITHOUT_EFFECT = frozenset(
    [
        "architectures",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "eos_token_ids",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "decoder_start_token_id",
        "unk_token_id",
        "use_cache",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "return_dict",
        "task_specific_params",
        "_name_or_path",
        "_attn_implementation_autoset",
        "name_or_path",
        "problem_type",
        "id2label",
        "label2id",
        "num_labels",
        "_num_labels",
        "finetuning_task",
        "tokenizer_class",
        "prefix",
        "predict_special_tokens",
        "reorder_and_upcast_attn",
        "torchscript",
        "tf_legacy_loss",
        "use_bfloat16",
        "xla_device",
        "n_ctx",
        "n_special",
        "chunk_size_feed_forward",
        "tie_encoder_decoder",
        "is_decoder",
        "cross_attention_hidden_size",
        "max_length",
        "min_length",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
        "output_scores",
        "return_dict_in_generate",
        "model_max_length",
    ]
)


def read_config_json(path: Path) -> tuple[GPTConfig, Head | None, tuple[str, ...]]:
    """Return the architecture that a config.json states, a classifier's labels, and notes.

    A note names the keys that were left out, if there are any.

    Raises MissingError when there is no such file, DataError that names every key that does not fit.
    """
    if not path.is_file():
        raise MissingError(
            "no architecture",
            path=path,
            why="there is no such file",
            fix="put the model's config.json beside its weights",
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise DataError("not a config.json", path=path, why=str(error)[:200], fix="fetch it again") from None
    wrong = [
        f"{key} = {str(stored[key])[:80]}"
        for key, fine in REQUIRED.items()
        if key in stored and stored[key] not in fine
    ]
    activation = stored.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        wrong.append(f"activation_function = {str(activation)[:80]}")
    fields = {ours: stored[theirs] for theirs, ours in FIELDS.items() if theirs in stored}
    types = field_types(GPTConfig)
    wrong += [
        f"{key} = {str(stored[key])[:80]}"
        for key, ours in FIELDS.items()
        if key in stored and ours != "activation" and not fits(stored[key], types[ours])
    ]
    if wrong:
        raise DataError(
            "not a GPT-2 we compute",
            path=path,
            why=listed(wrong),
            fix="use a GPT-2 model, or remove a key from config.json if you know that the model ignores it",
        )
    ignored = {key: stored[key] for key in stored if key in WITHOUT_EFFECT}
    logger.debug("%s: without effect on the logits: %s", path, ignored)
    unknown = [shown(key) for key in stored if key not in FIELDS.keys() | REQUIRED.keys() | WITHOUT_EFFECT]
    notes = (
        [f"{path.name} has keys that change nothing in a GPT-2: {listed(unknown, most=10)}"]
        if unknown
        else []
    )
    head = _head(stored, path)
    classes = len(head.labels) if head else 0
    fields |= {"activation": ACTIVATIONS[activation], "classes": classes}
    return foreign_config(path, **fields), head, tuple(notes)


def _head(stored: dict[str, Any], path: Path) -> Head | None:
    """What the head of a classifier tells apart; None for other models. Raises DataError for labels amiss."""
    if CLASSIFIER not in (stored.get("architectures") or ()):
        return None
    count = stored.get("num_labels", 2)
    table = stored.get("id2label") or {str(number): f"LABEL_{number}" for number in range(count)}
    labels = [table.get(str(number)) for number in range(len(table))] if isinstance(table, dict) else []
    if len(labels) < 1 or not all(isinstance(label, str) for label in labels):
        why = f"id2label = {str(table)[:200]} does not give every class from 0 on its label"
        raise DataError("not a classifier's labels", path=path, why=why, fix="correct id2label")
    return Head(tuple(str(label) for label in labels))


def config_json(config: GPTConfig, head: Head | None = None) -> dict[str, Any]:
    """Return the content of config.json for this architecture and a classifier's labels."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    fields = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    labels = (
        {
            "id2label": {str(number): label for number, label in enumerate(head.labels)},
            "label2id": {label: number for number, label in enumerate(head.labels)},
        }
        if head
        else {}
    )
    return {
        "architectures": [CLASSIFIER if head else "GPT2LMHeadModel"],
        "model_type": "gpt2",
        **fields,
        "activation_function": names[config.activation],
        "attn_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": 0.02,
        "use_cache": True,
        **labels,
    }
