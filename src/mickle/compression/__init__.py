"""Compression after training: the verb `compress` and its methods."""
