"""What to train before training it: the verb `plan`."""
