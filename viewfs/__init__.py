"""viewfs: give a process a file system view of its own."""

__version__ = "0.1.0"
