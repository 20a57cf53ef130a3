"""The errors of the reader: what is wrong with an image, as the errno that the caller of a system call shall see."""

from __future__ import annotations

import errno

__all__ = ["damaged", "encrypted", "missing"]


def damaged(what: str) -> OSError:
    """Bytes of the image contradict the format or their checksum."""
    return OSError(errno.EUCLEAN, what)


def missing(what: str) -> OSError:
    """Bytes are missing: the image ends before them."""
    return OSError(errno.EIO, what)


def encrypted(what: str) -> OSError:
    """An fscrypt key would be needed: the errno is the one that the kernel gives without it (fscrypt.rst)."""
    return OSError(errno.ENOKEY, f"{what} is encrypted (feature encrypt), and keys can't be given")
