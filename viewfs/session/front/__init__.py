"""The process that the user starts."""
