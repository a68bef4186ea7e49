"""Words become numbers: tokenizers, corpora, token files."""
