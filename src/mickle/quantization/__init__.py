"""Weights in few bits: the formats, and the layers that compute with them."""
