"""`jaxgpt finetune`: make a trained model solve a problem, from examples of it."""

import shlex
from collections.abc import Collection
from pathlib import Path

from jaxgpt.config import RunConfig
from jaxgpt.display import program
from jaxgpt.evaluation.report import REPORT_FILE
from jaxgpt.verbs.pretrain import tell, trained


def run(config: RunConfig, named: Collection[str] = (), in_file: Collection[str] = ()) -> None:
    """Train as configured, or continue the run in `out_dir` where it stopped (see `verbs.pretrain`)."""
    recipe = trained(config, named, in_file)
    folder = Path(recipe.out_dir)
    tell(f"{folder / REPORT_FILE}: loss curve, and how well each class is recognised")
    tell(f"next: {shlex.join([program(), 'classify', str(folder), 'a text of your own'])}")
