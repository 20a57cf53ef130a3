"""squashfs images, read-only."""
