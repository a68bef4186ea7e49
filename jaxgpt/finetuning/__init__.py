"""Make a trained model solve a problem of one's own: a task each, over the one training run."""
