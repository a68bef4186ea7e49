"""How good a model is: baselines to beat, and the report of a run."""
