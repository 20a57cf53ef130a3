"""What was changed, in a view and outside of it."""
