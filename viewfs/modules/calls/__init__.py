"""Modules that answer system calls."""
