"""Numbers become predictions: attention, positions, the block, GPT. NNX modules live here only."""
