"""What the user starts."""
