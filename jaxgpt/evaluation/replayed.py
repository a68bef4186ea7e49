"""What is shown of a step that was trained again: its figures beside the log's, gradient norms, and texts."""

import math
from collections.abc import Sequence

import numpy as np

from jaxgpt.evaluation.document import Heading, Paragraph, Part, Table, Tokens
from jaxgpt.training.replay import IN_LOG, Replayed

MOST_NAMED = 10  # steps that one sentence lists


def parts_of(found: Replayed) -> list[Part]:
    """The parts of the report. The texts with the highest losses come first."""
    texts = sorted(found.texts, key=lambda text: -text.loss if math.isfinite(text.loss) else -math.inf)
    told: list[Part] = [
        Paragraph(_reached(found)),
        Table(("", "trained again", "in the log", ""), [_figure(found, name) for name in IN_LOG]),
        Paragraph(_compared(found)),
        Heading("Norms of the gradient, before clipping"),
        gradient_table(found.norms, found.first_layer),
    ]
    if texts:
        told += [
            Heading(f"The {len(texts)} texts of the step, the highest loss first, in nats"),
            Tokens(texts, math.log(found.recipe.model.vocab)),
        ]
    return told


def _reached(found: Replayed) -> str:
    start = f"checkpoint {found.begun_at}" if found.begun_at else "the start of the run"
    between = found.step - 1 - found.begun_at
    reached = f"Step {found.step:,} was reached from {start}" + (
        f", by training {between:,} steps again." if between else "."
    )
    if found.skipped:
        reached += (
            " The run passed it by without an update (`skip_steps`), so that it has no figures of its own."
        )
    if found.diverged:
        reached += f" It made no update, because it diverged: {found.diverged}."
    return reached


def _figure(found: Replayed, name: str) -> tuple[str, ...]:
    here, there = found.metrics.get(name), found.logged.get(name)
    equal = "" if here is None or there is None else "equal" if here == there else "different"
    return (name, *("" if value is None else f"{value:.9g}" for value in (here, there)), equal)


def _compared(found: Replayed) -> str:
    if found.different:
        return (
            f"Other than in the log are {_steps(found.different)}: the run was trained on other devices or "
            "with other versions, or its log was changed."
        )
    if found.equal:
        return f"To the bit as in the log are {_steps(found.equal)}."
    return "The log has none of the steps that were trained again, so that nothing could be compared."


def _steps(steps: Sequence[int]) -> str:
    shown = [f"{step:,}" for step in steps[:MOST_NAMED]]
    more = [f"{len(steps) - MOST_NAMED:,} more"] if len(steps) > MOST_NAMED else []
    return ("step " if len(steps) == 1 else "steps ") + ", ".join([*shown, *more])


def gradient_table(norms: dict[str, np.ndarray], first_layer: int) -> Table:
    """A line for each block and for each other parameter. The columns are the parts of a block.

    `norms` has an array [N] of the layers for a path that begins with `h/`, and otherwise a number. Its first
    layer is the block `first_layer`.
    """
    columns = list(dict.fromkeys(path.split("/")[1] for path in norms if path.startswith("h/")))
    others = dict.fromkeys(path.split("/")[0] for path in norms if not path.startswith("h/"))
    lines = [(name, _joined(norms, name), *[""] * len(columns)) for name in others]
    layers = max((norm.shape[0] for path, norm in norms.items() if path.startswith("h/")), default=0)
    for layer in range(layers):
        cells = [_joined(norms, place, layer) for place in ("h", *(f"h/{column}" for column in columns))]
        lines.append((f"block {first_layer + layer}", *cells))
    return Table(("", "all", *columns), lines)


def _joined(norms: dict[str, np.ndarray], place: str, layer: int | None = None) -> str:
    """The norm of all parameters below a path together."""
    found = [norm for path, norm in norms.items() if path == place or path.startswith(f"{place}/")]
    squares = [float(norm if layer is None else norm[layer]) ** 2 for norm in found]
    return f"{math.sqrt(sum(squares)):.6g}"
