"""The book's printed numbers: PyTorch's generator in NumPy, the book's first weights, and the comparison."""
