"""File systems that are made of nothing, or of other trees."""
