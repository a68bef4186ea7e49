"""What the settings of every fine-tuning run decide: which parameters train, and for how many steps."""

from jaxgpt.config import FinetuneConfig
from jaxgpt.errors import ConfigError
from jaxgpt.training.trainable import EVERYTHING, Chosen

TRAINS = {"head": "", "last-block": "h/.*|ln_f/.*", "all": ".*", "lora": ".*/lora_[AB]"}


def chosen_of(config: FinetuneConfig, always: str = "") -> Chosen:
    """Which parameters train. Those whose paths match `always` do in any case.

    Raises ConfigError where nothing would train.
    """
    pattern, last = TRAINS.get(config.trains, config.trains), config.model.layers
    layers = config.span or ((last - 1, last) if config.trains == "last-block" else None)
    if pattern == ".*" and layers is None:
        return EVERYTHING
    patterns = "|".join(each for each in (always, pattern) if each)
    if not patterns:
        raise ConfigError(
            f"trains = {config.trains}",
            why="this task has no head, so that nothing would train",
            fix="write --trains all, or --trains last-block",
        )
    return Chosen(pattern=patterns, layers=layers, alone=config.adapts)


def steps_of(config: FinetuneConfig, rows: int) -> int:
    """How many steps the run takes: those it asks for, or as many as its epochs need for so many rows."""
    return config.steps or max(1, round(config.epochs * rows / config.sequences))
