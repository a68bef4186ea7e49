"""`jaxgpt finetune`: make a trained model solve a problem, from examples of it."""

import shlex
from collections.abc import Collection
from pathlib import Path

from jaxgpt.config import RunConfig, task_of
from jaxgpt.display import program
from jaxgpt.evaluation.report import REPORT_FILE
from jaxgpt.verbs.pretrain import tell, trained

# What the report of each task shows, and what can be done with the model then.
NEXT: dict[str, tuple[str, list[list[str]]]] = {
    "classify": ("and how well each class is recognised", [["classify", "a text of your own"]]),
    "instruct": ("sample answers, speed", [["chat"], ["answer"]]),
    "dpo": ("how well answers are told apart, sample answers, speed", [["chat"], ["answer"]]),
}


def run(config: RunConfig, named: Collection[str] = (), in_file: Collection[str] = ()) -> None:
    """Train as configured, or continue the run in `out_dir` where it stopped (see `verbs.pretrain`)."""
    recipe = trained(config, named, in_file)
    folder = Path(recipe.out_dir)
    shown, following = NEXT[task_of(recipe)]
    tell(f"{folder / REPORT_FILE}: loss curve, {shown}")
    for verb, *more in following:
        tell(f"next: {shlex.join([program(), verb, str(folder), *more])}")
