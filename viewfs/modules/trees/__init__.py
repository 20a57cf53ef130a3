"""File systems that need no source, or show other trees."""
