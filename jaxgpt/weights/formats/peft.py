"""PEFT's folders of LoRA adapters: adapter_config.json and adapter_model.safetensors.

PEFT's `lora_A` is (r, in) and its `lora_B` (out, r), whatever the layout of the layer's own matrix. GPT-2's
layers are Conv1D there, with matrices (in, out), which `fan_in_fan_out` says. A setting that changes what is
computed is understood, or the folder is refused. A file of ours, jaxgpt.json, stands beside them. It says by
a digest which base the adapter belongs to, and has the labels of a classifier. PEFT passes it over.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.config import LoraConfig
from jaxgpt.errors import ConfigError, DataError, MissingError
from jaxgpt.files import new_folder, write_atomically, write_files
from jaxgpt.text.chat_template import template_files, templates_in
from jaxgpt.weights.adapter import Adapter, Base
from jaxgpt.weights.formats.safetensors_file import open_safetensors, write_safetensors
from jaxgpt.weights.names import listed
from jaxgpt.weights.tensors import FLOATS, Head, Tensor

CONFIG, WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "jaxgpt.json"
PREFIX, SCORE = "base_model.model.", "score.weight"
LEAF = re.compile(
    r"(?:transformer\.)?h\.(\d{1,5})\.((?:attn|mlp)\.(?:c_attn|c_proj|c_fc))\.(lora_[AB])\.weight"
)
# Settings that change what is computed, with the values for which it is the same as ours.
OFF: tuple[object, ...] = (None, False, {}, [])
REQUIRED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the base itself
    "use_dora": OFF,
    "use_qalora": OFF,
    "use_bdlora": OFF,
    "lora_bias": OFF,
    "trainable_token_indices": OFF,
    "alora_invocation_tokens": OFF,
    "layer_replication": OFF,
    "target_parameters": OFF,
    "arrow_config": OFF,
    "kasa_config": OFF,
    "velora_config": OFF,
    "monteclora_config": OFF,
    "corda_config": OFF,
    "lora_ga_config": OFF,
    "loftq_config": OFF,
}
# Settings that are read, and those about training, about the file itself, or about which tensors there are.
KNOWN = REQUIRED.keys() | {
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "base_model_name_or_path",
    "auto_mapping",
    "peft_version",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "eva_config",
    "qalora_group_size",
    "ensure_weight_tying",
    "runtime_config",
}


def is_peft(path: Path) -> bool:
    """Return whether the folder holds an adapter of PEFT's."""
    return (path / CONFIG).is_file()


def open_peft(folder: Path) -> Adapter:
    """Return the adapter in a folder of PEFT's.

    Where layers have ranks or alphas of their own (`rank_pattern`, `alpha_pattern`), smaller ranks are filled
    up with zeros, and B is scaled so that one alpha is right for all. Raises MissingError when the weights
    are not there, DataError that names everything that is not understood.
    """
    table, ours = _json(folder / CONFIG), _json(folder / OURS) if (folder / OURS).is_file() else {}
    lora, notes = _settings(table, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        fix = f"fetch the folder again, or save it with safetensors: it must hold {WEIGHTS}"
        raise MissingError("no adapter weights", path=folder, why=f"it has no {WEIGHTS}", fix=fix)
    pairs, score = _pairs(folder / WEIGHTS)
    layers = tuple(sorted({layer for layer, _ in pairs}))
    rank = max(down.shape[1] for down, _ in pairs.values())
    targets = "|".join("h/" + name.replace(".", "/") for name in sorted({name for _, name in pairs}))
    lora = LoraConfig(rank=rank, alpha=lora.alpha, dropout=lora.dropout, rslora=lora.rslora, targets=targets)
    leaves: dict[str, np.ndarray] = {}
    for (layer, name), (down, up) in pairs.items():
        own = _alpha_of(f"transformer.h.{layer}.{name}", table, lora.alpha)
        factor = LoraConfig(rank=down.shape[1], alpha=own, rslora=lora.rslora).scale / lora.scale
        missing = rank - down.shape[1]
        parts = {
            "lora_A": np.pad(down, ((0, 0), (0, missing))),
            "lora_B": _as_ours(name, np.pad(up * np.float32(factor), ((0, missing), (0, 0)))),
        }
        for leaf, array in parts.items():
            path = f"h/{name.replace('.', '/')}/{leaf}"
            if path not in leaves:
                leaves[path] = np.zeros((len(layers), *array.shape), np.float32)
            if leaves[path].shape[1:] != array.shape:
                raise _damaged(folder / WEIGHTS, f"{path} has another shape in layer {layer}")
            leaves[path][layers.index(layer)] = array
    head = _head(table, ours, score, folder)
    base = _base(table, ours, folder)
    return Adapter(lora, layers, leaves, base, head, score, templates_in(folder), notes)


def _base(table: dict[str, Any], ours: dict[str, Any], folder: Path) -> Base:
    """Return the base that the files name, with the digest that we wrote, if we wrote the folder."""
    named = Base(str(table.get("base_model_name_or_path")))
    if "base" not in ours:
        return named
    try:
        known = Base(**ours["base"])
    except TypeError as error:
        raise _damaged(folder / OURS, f"base = {str(ours['base'])[:80]}") from error
    return known._replace(name=named.name)  # a person may have corrected the name


def _settings(table: dict[str, Any], path: Path) -> tuple[LoraConfig, tuple[str, ...]]:
    """Return what adapter_config.json says of the arithmetic, and a note about keys that change nothing."""
    wrong = [
        f"{key} = {str(table[key])[:80]}"
        for key, fine in REQUIRED.items()
        if key in table and table[key] not in fine
    ]
    values = {"alpha": table.get("lora_alpha", 8), "dropout": table.get("lora_dropout", 0.0)}
    try:
        lora = LoraConfig(rank=table.get("r", 8), rslora=table.get("use_rslora", False), **_floats(values))
    except ConfigError as error:
        raise _damaged(path, str(error)) from error
    wrong += [
        f"{name} = {str(table[name])[:80]}"
        for name in ("rank_pattern", "alpha_pattern")
        if not isinstance(table.get(name) or {}, dict)
    ]
    if wrong:
        raise DataError(
            "not an adapter that we compute",
            path=path,
            why=listed(wrong),
            fix="merge it into its base with PEFT (merge_and_unload), and use the model that this makes",
        )
    unknown = [str(key)[:80] for key, value in table.items() if key not in KNOWN and value]
    note = f"{path.name} has keys that we do not know and pass over: {listed(unknown, most=10)}"
    return lora, (note,) if unknown else ()


def _floats(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if type(value) is int else value for name, value in values.items()}


def _pairs(path: Path) -> tuple[dict[tuple[int, str], tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
    """Return A [in, r] and B [r, out] by the number of the block and the name in it, and a head's kernel."""
    found = {name.removeprefix(PREFIX): tensor for name, tensor in open_safetensors(path).items()}
    head = found.pop(SCORE, None)
    halves: dict[tuple[int, str], dict[str, np.ndarray]] = {}
    unknown = []
    for name, tensor in found.items():
        if match := LEAF.fullmatch(name):
            halves.setdefault((int(match[1]), match[2]), {})[match[3]] = _read(name, tensor, path)
        else:
            unknown.append(name[:80])
    if unknown:
        raise DataError(
            "not an adapter of GPT-2's linear layers",
            path=path,
            why=f"unknown tensors: {listed(sorted(unknown), most=10)}",
            fix="use an adapter whose targets are c_attn, c_proj and c_fc, and whose saved module is score",
        )
    if not halves:
        raise _damaged(path, "it holds no adapter")
    for (layer, name), pair in halves.items():
        shapes = [pair[leaf].shape for leaf in ("lora_A", "lora_B") if leaf in pair]
        if len(shapes) != 2 or shapes[0][0] != shapes[1][1]:
            raise _damaged(path, f"lora_A and lora_B of h.{layer}.{name} do not belong together: {shapes}")
    pairs = {place: (pair["lora_A"].T, pair["lora_B"].T) for place, pair in sorted(halves.items())}
    return pairs, None if head is None else _read(SCORE, head, path).T


def _read(name: str, tensor: Tensor, path: Path) -> np.ndarray:
    if tensor.dtype not in FLOATS or len(tensor.shape) != 2:
        raise _damaged(path, f"{name} is {tensor.dtype}{list(tensor.shape)}, and no matrix of floats")
    return tensor.read().astype(np.float32)


def _as_ours(name: str, up: np.ndarray) -> np.ndarray:
    """Return B as our layer has it: `c_attn` has an axis for query, key and value."""
    if name != "attn.c_attn" or up.shape[1] % 3:
        return up
    return up.reshape(len(up), 3, -1)


def _alpha_of(module: str, table: dict[str, Any], alpha: float) -> float:
    """Return the alpha of a module: its own, where a pattern names it as PEFT matches names."""
    for pattern, own in (table.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(own)
    return alpha


def _head(table: dict[str, Any], ours: dict[str, Any], score: np.ndarray | None, folder: Path) -> Head | None:
    """Return what a classifier's head means. Only our own file names the classes: PEFT's leave it to the
    base.
    """
    if table.get("task_type") == "SEQ_CLS" and score is None:
        raise _damaged(folder / WEIGHTS, f"a classifier (task_type SEQ_CLS) has no {SCORE}")
    if score is None:
        return None
    labels = ours.get("labels") or []
    if len(labels) not in (0, score.shape[1]) or not all(isinstance(label, str) for label in labels):
        raise _damaged(
            folder / OURS, f"labels = {str(labels)[:80]} are not those of {score.shape[1]} classes"
        )
    return Head(tuple(labels))


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    return table


def _damaged(path: Path, why: str) -> DataError:
    return DataError("not an adapter", path=path, why=why[:500], fix="fetch it again, or save it again")


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write an adapter as a new folder of PEFT's.

    Raises ConfigError when something is there already, or for a classifier whose head does not read the last
    token, StorageError when writing fails.
    """
    if adapter.head and adapter.head.reads != "last":
        raise ConfigError(
            "peft cannot say what this adapter is",
            why=f"its head reads {adapter.head.reads}, not the last token",
            fix="convert the merged model to jaxgpt's own format: --to jaxgpt",
        )
    tensors: dict[str, Tensor] = {}
    for path, leaf in adapter.leaves.items():
        module, _, name = path.removeprefix("h/").replace("/", ".").rpartition(".")
        for layer, array in zip(adapter.layers, leaf, strict=True):
            matrix = np.ascontiguousarray(array.reshape(len(array), -1).T)
            tensors[f"{PREFIX}transformer.h.{layer}.{module}.{name}.weight"] = Tensor.of(matrix)
    if adapter.score is not None:
        tensors[PREFIX + SCORE] = Tensor.of(np.ascontiguousarray(adapter.score.T))
    ours: dict[str, Any] = {"base": adapter.base._asdict()}
    if adapter.head:
        ours["labels"] = list(adapter.head.labels)
    with new_folder(folder) as part:
        write_safetensors(part / WEIGHTS, tensors, {"format": "pt"})
        for name, content in ((CONFIG, _config(adapter)), (OURS, ours)):
            write_atomically(part / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        write_files(part, template_files(adapter.templates))


def _config(adapter: Adapter) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    lora = adapter.lora
    whole = adapter.layers == tuple(range(len(adapter.layers)))
    modules = {path.removeprefix("h/").rpartition("/")[0].replace("/", ".") for path in adapter.leaves}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if adapter.head else "CAUSAL_LM",
        "base_model_name_or_path": adapter.base.name,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if math.floor(lora.alpha) == lora.alpha else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": sorted(modules),
        "layers_to_transform": None if whole else list(adapter.layers),
        "fan_in_fan_out": True,
        "bias": "none",
        "modules_to_save": ["score"] if adapter.head else None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
