"""Copy-on-write layers: where they are kept, what they change, and how that is committed or discarded."""
