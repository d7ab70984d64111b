"""Mickle: more model from less. Every verb of the command line is a function here with the same name."""

__version__ = "0.1.0"
