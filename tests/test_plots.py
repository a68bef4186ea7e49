"""The pictures show the numbers that they are given, and the numbers behind them are right."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seen_html import Seen

from jaxgpt.evaluation.plots import (
    UNLIKELY,
    attention_maps,
    coloured_tokens,
    curve,
    embedding_projection,
    heat_map,
    lens_map,
    loss_curves,
    new_figure,
    projection,
)
from jaxgpt.evaluation.token_html import STYLE
from jaxgpt.inference.inside import Lens
from jaxgpt.text.tokenizer_files import load_tokenizer

ROWS = [{"step": 0, "val_loss": 3.0}, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0, "val_loss": 2.25}]


@pytest.fixture
def axes() -> Any:
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    figure = new_figure(4, 3)
    assert figure is not None
    return figure.add_subplot()


def words_in(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_heat_map_has_its_numbers_and_names(axes: Any) -> None:
    heat_map(axes, [[1, 0.25], [0.5, 0.61]], ["a", "b"], ["c", "d"], title="t")
    assert words_in(axes) == ["1.00", "0.25", "0.50", "0.61"]
    assert [text.get_color() for text in axes.texts] == ["white", "black", "black", "white"]
    assert [label.get_text() for label in (*axes.get_yticklabels(), *axes.get_xticklabels())] == [*"abcd"]
    (image,) = axes.images
    assert image.get_clim() == (0, 1) and axes.get_title() == "t"
    np.testing.assert_array_equal(image.get_array(), [[1, 0.25], [0.5, 0.61]])


def test_every_head_has_a_map(axes: Any) -> None:
    weights_HTT = np.arange(5 * 4).reshape(5, 2, 2) / 20
    figure = new_figure(4, 3)
    assert figure is not None
    attention_maps(figure, weights_HTT, ["a", " b"])
    assert [panel.get_title() for panel in figure.axes] == [f"head {head}" for head in range(5)]
    for panel, weights_TT in zip(figure.axes, weights_HTT, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), weights_TT)
        assert panel.images[0].get_clim() == (0, 1)  # all heads share the colours
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "␣b"]


def test_the_lens_has_the_last_layer_on_top(axes: Any) -> None:
    ids = np.array([[[97, 1], [98, 1]], [[99, 1], [10, 1]]])
    lens = Lens(np.log([[[0.5, 0.1], [0.25, 0.1]], [[0.9, 0.1], [0.75, 0.1]]]), ids)
    lens_map(axes, lens, ["x", "y"], load_tokenizer("bytes"))
    assert words_in(axes) == ["c", "⏎", "a", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "embedding"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.9, 0.75], [0.5, 0.25]])


def test_curves_go_through_what_was_measured(axes: Any) -> None:
    loss_curves(axes, ROWS, unit="byte")
    curve(axes, ROWS, "accuracy", label="none")
    train, val = axes.lines
    np.testing.assert_array_equal(train.get_xydata(), [[1, 2.5], [2, 2.0]])
    np.testing.assert_array_equal(val.get_xydata(), [[0, 3.0], [2, 2.25]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats per byte)")


def test_a_projection_keeps_distances_in_a_plane_and_says_what_it_leaves_out() -> None:
    flat_E2 = np.random.default_rng(0).normal(size=(12, 2)) * [5, 1] + [3, -2]
    turn_2D = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:2]
    points_E2, shares_2 = projection(flat_E2 @ turn_2D)
    between = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (points_E2, flat_E2)]
    np.testing.assert_allclose(*between, atol=1e-9)
    assert shares_2.sum() == pytest.approx(1) and shares_2[0] > 0.8
    assert projection(-flat_E2 @ turn_2D).points_E2 == pytest.approx(-points_E2)
    third_ED = np.eye(
        3
    )  # three vectors at right angles: their plane holds all of them, and no direction more
    assert projection(third_ED).shares_2 == pytest.approx([0.5, 0.5])


def test_projected_vectors_have_their_names_and_groups(axes: Any) -> None:
    vectors_ED = [[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]
    embedding_projection(axes, vectors_ED, [" a", "b", "c"], ["x", "y", "x"])
    assert words_in(axes) == ["␣a", "b", "c"]
    drawn = {text.get_text(): tuple(text.xy) for text in axes.texts}
    points_E2 = projection(vectors_ED).points_E2
    assert drawn == dict(zip(["␣a", "b", "c"], map(tuple, points_E2), strict=True))
    first, second = (group.get_offsets() for group in axes.collections)
    np.testing.assert_array_equal(first, points_E2[[0, 2]])
    np.testing.assert_array_equal(second, points_E2[[1]])


def test_tokens_are_coloured_as_on_the_servers_page() -> None:
    content = coloured_tokens(["<b>", " is", "\n"], [None, np.log(0.25), -2 * UNLIKELY])._repr_html_()
    seen = Seen(content)
    assert seen.wrong == [] and seen.text.endswith("<b> is↵\n")
    assert [style for style in seen.values("style") if "--share" in style] == ["--share: 77", "--share: 0"]
    assert seen.values("title") == ["loss 1.3863, probability 25.00%", "loss 12.0000, probability 0.00%"]
    serving = Path(__file__).parent.parent / "jaxgpt" / "serving"
    (nats,) = re.findall(r"Math\.max\(0, 1 \+ logprob / (\d+)\)", (serving / "page_tokens.js").read_text())
    assert float(nats) == UNLIKELY
    assert (
        STYLE in content
        and "--unlikely:" in STYLE
        and "--unlikely:" not in (serving / "page.css").read_text()
    )
