"""The processes outside the view that own the session: the stand-by, and the supervisor with all it knows."""
