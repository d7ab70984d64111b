"""Fine-tuning: the verb `tune` and its methods."""
