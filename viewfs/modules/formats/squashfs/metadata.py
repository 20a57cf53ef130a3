"""Metadata: everything but the content of files, in blocks of up to 8 KiB that are compressed one by one.

A *table* of equal records (owners, fragments, exports, xattr ids) has an array of the positions of its metadata blocks.
Inodes and directories follow each other without regard to the ends of blocks, and are found by a *reference*: the
position of a block from the beginning of its table, shifted left by 16, and an offset into its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, unpack

from viewfs.modules.formats.squashfs.codecs import Decompressor
from viewfs.modules.formats.squashfs.layout import METADATA_SIZE
from viewfs.modules.framework.cache import SingleFlightCache
from viewfs.modules.framework.damage import damaged, missing
from viewfs.modules.framework.sources import Section

__all__ = ["Metadata", "Table"]

_UNCOMPRESSED = 1 << 15
_HEADER_SIZE = 2
_POSITION = Struct("<Q")
_POSITIONS_KEPT = 4096
#: Bytes of content that are kept.
_CACHED = 8 << 20


class Metadata:
    """The metadata blocks of an image. Any thread may call it; a block is decompressed only once while it is cached."""

    def __init__(self, image: Section, decompress: Decompressor) -> None:
        self._image = image
        self._decompress = decompress
        self.blocks: SingleFlightCache[int, tuple[bytes | bytearray, int]] = SingleFlightCache(
            _CACHED, self._load, lambda _block: METADATA_SIZE
        )

        #: The last block that was asked for, and its position: neighbouring inodes are mostly asked for together.
        self._last: tuple[int, bytes | bytearray, int] = (-1, b"", 0)

    def _load(self, position: int) -> tuple[bytes | bytearray, int]:
        image = self._image
        raw = image.pread_up_to(_HEADER_SIZE + METADATA_SIZE, position)
        if len(raw) < _HEADER_SIZE:
            raise missing(f"the image ends before the metadata block at {position}")
        header = raw[0] | raw[1] << 8
        length = header & ~_UNCOMPRESSED
        if not 0 < length <= METADATA_SIZE:
            raise damaged(f"the metadata block at {position} has an impossible length, {length}")
        stored = raw[_HEADER_SIZE : _HEADER_SIZE + length]
        if len(stored) < length:
            raise missing(f"the image ends within the metadata block at {position}")
        content = stored if header & _UNCOMPRESSED else self._decompress(stored, METADATA_SIZE)
        return content, position + _HEADER_SIZE + length

    def block(self, position: int) -> tuple[bytes | bytearray, int]:
        """The content of the block at `position`, and the position of the next one. Raises OSError."""
        last = self._last
        if last[0] == position:
            return last[1], last[2]
        data, following = self.blocks.get(position)
        self._last = position, data, following
        return data, following

    def at(self, position: int, offset: int, size: int) -> tuple[bytes | bytearray, int]:
        """A buffer, and the index in it of the `size` bytes that begin `offset` bytes into the block at `position`.

        Raises OSError(EUCLEAN) if there aren't so many.
        """
        data, _following = self.block(position)
        if offset + size <= len(data):
            return data, offset
        return self.read(position, offset, size), 0

    def head(self, position: int, offset: int, size: int) -> tuple[bytes | bytearray, int]:
        """As `at`, but there may be fewer than `size` bytes at the end of the table."""
        data, following = self.block(position)
        if offset + size <= len(data):
            return data, offset
        if offset > len(data):
            raise damaged(f"offset {offset} is beyond the metadata block at {position}")
        head = bytes(data[offset:])
        try:
            return head + self.block(following)[0][:size], 0
        except OSError:
            return head, 0

    def read(self, position: int, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises OSError(EUCLEAN) if there aren't so many."""
        pieces = []
        while size > 0:
            data, position = self.block(position)
            piece = bytes(data[offset : offset + size])
            if not piece or (len(piece) < size and len(data) < METADATA_SIZE):
                raise damaged(f"metadata ends {size} bytes too early at {position}")
            pieces.append(piece)
            size -= len(piece)
            offset = 0
        return b"".join(pieces)

    def skip(self, position: int, offset: int, size: int) -> tuple[int, int]:
        """The place (block and offset) that is `size` bytes further."""
        offset += size
        while offset >= METADATA_SIZE:
            data, position = self.block(position)
            if len(data) < METADATA_SIZE:
                raise damaged(f"metadata ends too early at {position}")
            offset -= METADATA_SIZE
        return position, offset


class Table:
    """Records of one size behind an array of positions."""

    def __init__(self, image: Section, metadata: Metadata, start: int, count: int, record: Struct, what: str) -> None:
        """`start` is the position of the array; `what` names a record in messages. Raises OSError if the image ends
        before the array does."""
        self._metadata = metadata
        self._record = record
        self._count = count
        self._what = what
        per_block = METADATA_SIZE // record.size
        self._per_block = per_block
        blocks = -(-count // per_block)
        size = blocks * _POSITION.size
        if start + size > image.size:
            raise missing(f"the image ends before the table of {what}s")
        # The array is kept in memory if it is small, as in all but very large images.
        self._positions: Sequence[int] | None = None
        if blocks <= _POSITIONS_KEPT:
            self._positions = unpack(f"<{blocks}Q", image.pread(size, start))
        self._image = image
        self._start = start

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[int, ...]:
        """Raises OSError(EUCLEAN) if there is no such record."""
        if not 0 <= index < self._count:
            raise damaged(f"{self._what} {index} can't be: there are {self._count}")
        block, slot = divmod(index, self._per_block)
        if self._positions is not None:
            position = self._positions[block]
        else:
            (position,) = _POSITION.unpack(self._image.pread(_POSITION.size, self._start + block * _POSITION.size))
        data, start = self._metadata.at(position, slot * self._record.size, self._record.size)
        record: tuple[int, ...] = self._record.unpack_from(data, start)
        return record
