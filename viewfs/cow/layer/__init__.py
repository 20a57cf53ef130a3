"""Layers: where they are, what is written down of them, keeping their states."""
