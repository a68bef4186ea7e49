"""Pictures for notebooks and reports, and the numbers behind them. Drawing needs matplotlib (extra `plots`).

What draws is given the axes or the figure to draw on, which `plt.subplots()` or `new_figure` makes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxgpt.evaluation.document import Tokens
from jaxgpt.evaluation.token_html import STYLE, token_spans
from jaxgpt.log import series
from jaxgpt.text.shown import Shown, token_texts
from jaxgpt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxgpt.inference.inside import Lens

UNLIKELY = (
    6.0  # nats: a token to which the model gave 1 in 400 has the strongest colour, as on the server's page
)
SHEET = (
    "color-scheme: light dark; background: Canvas; color: CanvasText; padding: .5em; white-space: pre-wrap; "
    "font: 15px/1.8 ui-monospace, monospace"
)


class Html(NamedTuple):
    """HTML that a notebook shows."""

    content: str

    def _repr_html_(self) -> str:
        return self.content


def new_figure(width: float, height: float) -> "Figure | None":
    """A figure of so many inches without pyplot, or None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def heat_map(
    axes: "Axes",
    values_RC: Any,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    form: str = ".2f",
    largest: float | None = None,
) -> None:
    """Draw a table of numbers from 0 up; the larger a number, the darker its cell.

    `columns` are called like the rows unless they are given. `form` is how a number is written into its cell;
    "" writes none. `largest` has the darkest colour; it is the largest of the numbers unless it is given.
    """
    values_RC = np.asarray(values_RC)
    columns = rows if columns is None else columns
    largest = float(values_RC.max()) if largest is None else largest
    axes.imshow(values_RC, cmap="Blues", vmin=0, vmax=largest)
    axes.set_title(title)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    if form:
        for (row, column), value in np.ndenumerate(values_RC):
            colour = "white" if value > 0.6 * largest else "black"
            axes.text(
                column, row, f"{value:{form}}", ha="center", va="center", fontsize="small", color=colour
            )


def attention_maps(figure: "Figure", weights_HTT: Any, tokens: Sequence[str], *, columns: int = 4) -> None:
    """Draw the attention of every head of a layer: a row for each token, a column for each it looks at."""
    heads = len(weights_HTT)
    panels = figure.subplots(-(-heads // columns), min(heads, columns), squeeze=False).ravel()
    names = [_visible(token) for token in tokens]
    for head, (panel, weights_TT) in enumerate(zip(panels, weights_HTT, strict=False)):
        heat_map(panel, weights_TT, names, title=f"head {head}", form="", largest=1.0)
        panel.tick_params(labelsize="x-small", length=0)
    for panel in panels[heads:]:
        panel.remove()


def lens_map(axes: "Axes", lens: "Lens", tokens: Sequence[str], tokenizer: Tokenizer) -> None:
    """Draw a logit lens: what the model would write behind each token after each layer, the last on top.

    The darker a cell, the more probable the token in it.
    """
    shares_NT = np.exp(lens.logprobs_NTK[::-1, :, 0])
    layers = ["embedding", *(f"layer {n}" for n in range(len(shares_NT) - 1))][::-1]
    heat_map(axes, shares_NT, layers, [_visible(token) for token in tokens], form="", largest=1.0)
    written = token_texts(lens.ids_NTK[::-1, :, 0].ravel().tolist(), tokenizer)
    for ((row, column), share), token in zip(np.ndenumerate(shares_NT), written, strict=True):
        colour = "white" if share > 0.6 else "black"
        axes.text(column, row, _visible(token), ha="center", va="center", fontsize="x-small", color=colour)
    axes.set_aspect("auto")
    axes.set_xlabel("behind this token")


def curve(axes: "Axes", rows: Sequence[Mapping[str, Any]], key: str, style: str = "-", **look: Any) -> None:
    """Draw a measurement of a run's log over the steps; nothing where the log has none of it."""
    if points := series(rows, key):
        axes.plot(*zip(*points, strict=True), style, **look)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def loss_curves(axes: "Axes", rows: Sequence[Mapping[str, Any]], *, unit: str = "token") -> None:
    """Draw the training and the validation loss of a run's log."""
    curve(axes, rows, "loss", label="training")
    curve(axes, rows, "val_loss", "o-", label="validation", markersize=3)
    axes.set_ylabel(f"loss (nats per {unit})")
    axes.legend()


class Projection(NamedTuple):
    """Vectors on a plane."""

    points_E2: np.ndarray
    shares_2: np.ndarray
    """Which share of the vectors' variance lies along each axis of the plane."""


def projection(vectors_ED: Any) -> Projection:
    """Vectors seen from the side on which they differ most: their first two principal components.

    The sign of a component is free; here its largest coefficient is above 0. Source: Pearson 1901.
    """
    vectors_ED = np.asarray(vectors_ED, np.float64)
    centred_ED = vectors_ED - vectors_ED.mean(axis=0)
    _, sizes_C, components_CD = np.linalg.svd(centred_ED, full_matrices=False)
    signs_C = np.sign(np.take_along_axis(components_CD, np.abs(components_CD).argmax(1)[:, None], axis=1))
    points_E2 = (centred_ED @ (components_CD * signs_C).T)[:, :2]
    return Projection(points_E2, (sizes_C**2 / max(np.sum(sizes_C**2), np.finfo(float).tiny))[:2])


def embedding_projection(
    axes: "Axes", vectors_ED: Any, names: Sequence[str], groups: Sequence[str] | None = None
) -> None:
    """Draw vectors, such as rows of the embedding, as points on a plane (`projection`), each with its name.

    Points of one group have one colour.
    """
    points_E2, shares_2 = projection(vectors_ED)
    for group in dict.fromkeys(groups or [""]):
        chosen = [place for place in range(len(names)) if groups is None or groups[place] == group]
        axes.scatter(points_E2[chosen, 0], points_E2[chosen, 1], s=12, label=group or None)
    for name, point in zip(names, points_E2, strict=True):
        axes.annotate(_visible(name), point, xytext=(3, 3), textcoords="offset points", fontsize="small")
    along = [f"component {n + 1} ({share:.0%} of the variance)" for n, share in enumerate(shares_2)]
    axes.set(xlabel=along[0], ylabel=along[1])
    if groups:
        axes.legend()


def coloured_tokens(tokens: Sequence[str], logprobs: Sequence[float | None]) -> Html:
    """A text whose tokens are coloured by how probable they were, as they are on the server's page.

    `logprobs` are natural logarithms; None, as for a first token, leaves it without colour. The pointer over
    a token shows the number.
    """
    losses = [None if logprob is None else -logprob for logprob in logprobs]
    shown = Shown("", list(zip(tokens, losses, strict=True)), math.nan)
    spans = token_spans(shown, Tokens([shown], UNLIKELY))
    return Html(f'<style>{STYLE}</style><pre class="tokens" style="{SHEET}">{spans}</pre>')


def _visible(token: str) -> str:
    """A token as a label of a picture, in which blanks and the ends of lines are seen."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")
