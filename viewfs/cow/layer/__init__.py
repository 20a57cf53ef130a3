"""Layers: where they are, what is written down of them, and the states of them that are kept."""
