"""The search of `jaxgpt plan`: the settings that were tried, the best one first."""

import shlex
from collections.abc import Callable
from typing import Any

from jaxgpt.config import TrainConfig, flag_of
from jaxgpt.display import note
from jaxgpt.errors import ConfigError, JaxgptError
from jaxgpt.training.plan_search import Setting, Space, Trial, search
from jaxgpt.training.topology import Topology
from jaxgpt.verbs.plan_table import COLUMNS, row_of, show

FEWER = (
    "take more or larger chips, a smaller model, or fewer sequences in a step (batch x accumulate): nothing "
    "that was tried fits"
)


def searched(
    recipe: TrainConfig, topology: Topology, measure: Callable[[TrainConfig, str], dict[str, Any]]
) -> tuple[Trial, dict[str, Any]]:
    """Search, and print what was tried. Returns the best trial, and all of them as they are written.

    Raises ConfigError where nothing could be compiled.
    """
    topology.environment()  # raises where nothing can be compiled at all

    def figures(setting: Setting) -> dict[str, Any]:
        try:
            return measure(setting.applied(recipe), " ".join(flags(setting)))
        except JaxgptError as error:  # one that does not compile is no reason to give up the others
            note(f"not compiled: {error}")
            return {"error": str(error)}

    found = search(Space(recipe, topology), figures)
    best, tried = found[0], [trial for trial in found if trial.figures]
    if not tried:
        why = "a chip's share of the parameters and of Adam's moments alone is more than its memory"
        raise ConfigError(f"the recipe does not fit on {topology}", why=why, fix=FEWER)
    if "error" in best.figures:
        raise ConfigError.worded(best.figures["error"])
    show(map(row_of, tried), COLUMNS)
    passed_over = len(found) - len(tried)
    others = f"; {passed_over} others need more memory than one that does not fit" if passed_over else ""
    print(f"{len(tried)} settings{others}. The best one: {shlex.join(flags(best.setting))}\n")
    return best, {
        "topology": str(topology),
        "best": best.setting.settings,
        "passed_over": passed_over,
        "tried": [{"settings": trial.setting.settings} | trial.figures for trial in tried],
    }


def flags(setting: Setting) -> list[str]:
    """The flags that compute a recipe so."""
    return [word for name, value in setting.settings.items() for word in (flag_of(name), str(value))]
