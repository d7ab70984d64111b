"""From what people have (pages, archives, rows) to corpora and batches."""
