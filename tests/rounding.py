"""What int8 weights stand for, by hand: the model's parameters after rounding, in float32 again."""

from typing import Any

import jax
import numpy as np

from jaxgpt.model.gpt import Params


def rounded_to_int8(params: Params) -> Params:
    """Each output's weights in whole steps of their largest magnitude / 127; everything else as it is."""

    def rounded(path: Any, leaf: Any) -> Any:
        name, stacked = path[-1].key, path[0].key == "h"
        if name != "kernel" and path[0].key not in ("wte", "lm_head"):
            return leaf
        axis = (1 if stacked else 0) if name == "kernel" else 1
        weights = np.asarray(leaf, np.float32)
        step = np.abs(weights).max(axis=axis, keepdims=True) / 127
        return np.rint(weights / np.where(step > 0, step, 1)) * step

    return jax.tree_util.tree_map_with_path(rounded, params)
