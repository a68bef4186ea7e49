"""Tasks that models are compared by: a file for each, its documents and its protocols over one scorer."""
