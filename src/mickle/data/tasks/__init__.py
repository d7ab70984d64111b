"""Algorithmic tasks whose instances have a length: short ones to learn from, longer ones to be tested on."""
