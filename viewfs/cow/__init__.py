"""Copy-on-write layers: where they are kept, what they change, and keeping or discarding that."""
