"""Mounts of a view: skeletons that make any path a mount point, attaching, detaching, and the FUSE host."""
