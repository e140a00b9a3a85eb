"""Text that every subject shares: the corpus and its splits, windows, tokenizers, n-gram losses. Imports no torch."""
