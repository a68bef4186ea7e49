"""The book's ablation of its classifier (section 6, additional experiments), on any model and any table.

    python tools/ablation.py --from runs/base --data texts.csv --out runs/ablation --seeds 5

Each row is one change of the recipe `classify`. Each seed divides the table anew, and every row sees the same
divisions, so that rows can be compared in pairs. With several learning rates, each row takes the one that is
best on the validation texts, of all seeds or of the first ones (--choose-on 1 tries them on one seed alone).
The table goes to stdout and to table.md in the folder, and every single run to results.json. The same command
again goes on where it was stopped.

With --tfidf, logistic regression on TF-IDF stands beside them; it needs scikit-learn.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro

import jaxgpt
from jaxgpt.config import ClassifyConfig, LabelledConfig
from jaxgpt.display import note
from jaxgpt.errors import ConfigError
from jaxgpt.evaluation.markdown import table
from jaxgpt.files import write_atomically
from jaxgpt.finetuning.classify import split_of
from jaxgpt.language_model import LanguageModel

RANDOM, TFIDF = "random start, all layers", "TF-IDF with logistic regression"
# What each row changes. Where `layers` is negative, it counts from the last layer.
ROWS: dict[str, dict[str, Any]] = {
    "last token, last block": {},
    "first token, last block": {"reads": "first"},
    "mean of the tokens, last block": {"reads": "mean"},
    "end of the padded row, last block": {"reads": "end"},
    "last token, head alone": {"trains": "head"},
    "last token, last two blocks": {"layers": -2},
    "last token, all layers": {"trains": "all"},
    "last token, LoRA": {"trains": "lora", "lora.rank": 16, "lora.alpha": 16.0, "lora.targets": ".*"},
    RANDOM: {"trains": "all"},
}


@dataclass(frozen=True, kw_only=True)
class Args:
    """Run the rows of the ablation, each with several seeds."""

    model: Annotated[str, tyro.conf.arg(name="from")]
    """The pretrained model."""
    data: Path
    """A table of labelled texts."""
    out: Path = Path("runs/ablation")
    """The folder of the runs."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows to run, by their names."""
    seeds: int = 5
    """How many divisions of the table."""
    epochs: float = 5
    """How often each training text is read."""
    learning_rates: tuple[float, ...] = (5e-5,)
    """The learning rates to choose from."""
    choose_on: int | None = None
    """How many seeds try every learning rate, if not all. The other seeds take the best one."""
    balance: bool = True
    """Whether each label keeps as many texts as the rarest one has."""
    val_fraction: float = 0.1
    """Share of the texts on which learning rates are compared."""
    test_fraction: float = 0.2
    """Share of the texts on which the rows are compared."""
    tfidf: bool = False
    """Whether to run TF-IDF with logistic regression too."""


class Result(NamedTuple):
    """One run."""

    row: str
    learning_rate: float
    seed: int
    val_accuracy: float
    test_accuracy: float


def main(args: Args) -> None:
    """Run all rows, and write the table."""
    if unknown := [name for name in args.rows if name not in ROWS]:
        raise ConfigError(
            f"row {unknown[0]!r}", why=f"the rows are {', '.join(ROWS)}", fix="name some of these"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    base = jaxgpt.load(args.model)
    results = []
    for name in args.rows:
        first = args.seeds if args.choose_on is None else min(args.choose_on, args.seeds)
        tried = [_run(args, base, name, rate, seed) for rate in args.learning_rates for seed in range(first)]
        rate = chosen(tried)[name][0].learning_rate
        results += tried + [_run(args, base, name, rate, seed) for seed in range(first, args.seeds)]
    if args.tfidf:
        results += [_tfidf(args, seed) for seed in range(args.seeds)]
    written = table_of(results)
    write_atomically(args.out / "table.md", (written + "\n").encode())
    rows = [result._asdict() for result in results]
    write_atomically(args.out / "results.json", (json.dumps(rows, indent=2) + "\n").encode())
    print(written)


def _run(args: Args, base: LanguageModel, name: str, rate: float, seed: int) -> Result:
    settings = dict(ROWS[name])
    if (layers := settings.get("layers")) is not None:
        settings["layers"] = f"{base.config.layers + layers}:{base.config.layers}"
    start = args.model if name != RANDOM else str(_random_model(args.out, base, seed))
    folder = args.out / f"{name.replace(', ', '-').replace(' ', '-')}-{rate:g}-{seed}"
    recipe = jaxgpt.load_recipe("classify", _common(args, seed) | settings | {"optim.learning_rate": rate})
    recipe = dataclasses.replace(recipe, init_from=start, out_dir=str(folder), eval_every=10**6)
    rows = jaxgpt.train(recipe, progress=False).metrics
    val, test = ([row[key] for row in rows if key in row][-1] for key in ("val_accuracy", "test_accuracy"))
    note(f"{name}, learning rate {rate:g}, seed {seed}: {test:.2%}")
    return Result(name, rate, seed, val, test)


def _common(args: Args, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "epochs": args.epochs,
        "data.path": str(args.data),
        "data.balance": args.balance,
        "data.val_fraction": args.val_fraction,
        "data.test_fraction": args.test_fraction,
    }


def _random_model(out: Path, base: LanguageModel, seed: int) -> Path:
    """A model of the same architecture and tokenizer, with random weights."""
    folder = out / f"random-{seed}"
    if not folder.exists():
        params = jax.jit(jaxgpt.define(base.config).init)(jax.random.key(seed))
        dataclasses.replace(base, params=params).save(folder)
    return folder


def _tfidf(args: Args, seed: int) -> Result:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    data = LabelledConfig(
        path=str(args.data),
        balance=args.balance,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
    )
    split, _ = split_of(ClassifyConfig(data=data, seed=seed))
    vectors = TfidfVectorizer()
    model = LogisticRegression(max_iter=1000)
    model.fit(vectors.fit_transform([row.text for row in split.train]), [row.label for row in split.train])
    val, test = (
        float(model.score(vectors.transform([row.text for row in part]), [row.label for row in part]))
        for part in (split.val, split.test)
    )
    return Result(TFIDF, 0.0, seed, val, test)


def chosen(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Of each row, the runs with the best learning rate.

    It is the best on the validation texts of those seeds that ran with every learning rate.
    """
    by_row: dict[str, dict[float, list[Result]]] = {}
    for result in results:
        by_row.setdefault(result.row, {}).setdefault(result.learning_rate, []).append(result)
    return {row: max(rates.values(), key=_accuracy_on(rates)) for row, rates in by_row.items()}


def _accuracy_on(rates: dict[float, list[Result]]) -> Callable[[list[Result]], float]:
    shared = set.intersection(*({run.seed for run in runs} for runs in rates.values()))
    return lambda runs: statistics.fmean(run.val_accuracy for run in runs if run.seed in shared)


def table_of(results: Sequence[Result]) -> str:
    """The table: of each row the mean and the standard deviation, and the distance to the random start."""
    best = chosen(results)
    lines = []
    for row, runs in best.items():
        test = [run.test_accuracy for run in runs]
        above = ""
        if RANDOM in best and row != RANDOM:
            pairs = np.array(test) - np.array([run.test_accuracy for run in best[RANDOM]])
            above = f"{pairs.mean():+.2%} ({np.sum(pairs > 0)} of {len(pairs)})"
        spread = f" ± {statistics.stdev(test):.2%}" if len(test) > 1 else ""
        val = statistics.fmean(run.val_accuracy for run in runs)
        rate = f"{runs[0].learning_rate:g}" if row != TFIDF else ""
        lines.append((row, rate, f"{val:.2%}", f"{statistics.fmean(test):.2%}{spread}", above))
    head = ("row", "learning rate", "validation accuracy", "test accuracy", "above the random start (splits)")
    return table(head, lines)


if __name__ == "__main__":
    main(tyro.cli(Args))
