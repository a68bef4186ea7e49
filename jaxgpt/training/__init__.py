"""Predictions become better: the loss, the optimizer, the step, the loop."""
