"""Dropout before a linear layer as ridge regression: closed forms, the path of rates, heads, risk curves."""
