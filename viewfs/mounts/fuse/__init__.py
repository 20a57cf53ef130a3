"""The FUSE host: the protocol as pure code, a file system behind it, and the loops that serve a descriptor."""
