"""Hot inner loops. Each has a plain twin that defines it, and a property test that holds the fast one to it."""
