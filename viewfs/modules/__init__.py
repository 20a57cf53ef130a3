"""Modules: what their authors implement, how they are found, and those that are built in."""
