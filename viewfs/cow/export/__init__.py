"""Writing a tree as a new image."""
