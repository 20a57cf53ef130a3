"""Sources as The Sleuth Kit (pytsk3) reads them."""

from __future__ import annotations

import pytsk3

from viewfs.modules.api import Source

__all__ = ["SourceImage", "reason"]


class SourceImage(pytsk3.Img_Info):  # type: ignore[misc]  # the library has no types
    """A source as an image of the library's."""

    def __init__(self, source: Source) -> None:
        self._source = source
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def close(self) -> None:
        pass

    def read(self, offset: int, size: int) -> bytes:
        return self._source.pread(size, offset)

    def get_size(self) -> int:
        return self._source.size


def reason(error: OSError) -> str:
    """What the library says, without the place in its source that it begins with."""
    return str(error).partition(") ")[2] or str(error)
