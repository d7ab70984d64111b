"""One training loop, its objectives and its optimizers."""
