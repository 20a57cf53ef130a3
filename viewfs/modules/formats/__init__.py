"""File systems in images: a folder for each format."""
