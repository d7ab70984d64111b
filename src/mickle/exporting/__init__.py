"""Models out: merged, in other formats, and proven equal; the verb `export`."""
