"""File formats that hold GPT-2's weights, one module each. `weights.open` finds the one that fits a file."""
