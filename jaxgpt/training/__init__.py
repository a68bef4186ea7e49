"""Make a model's predictions better: the loss, the optimizer, the training step, the loop."""
