"""Where in a file a squashfs file system begins: at its beginning, behind an ELF program (AppImage), or further on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from struct import Struct, error

from viewfs.errors import DamagedSourceError
from viewfs.modules.api import Source
from viewfs.modules.formats.squashfs.layout import MAGIC, SUPERBLOCK_SIZE, parse_superblock

__all__ = ["find_offset"]

_ELF = b"\x7fELF"
#: The first bytes of programs that may have a file system behind them: ELF programs and scripts. (Images of Singularity
#: and Apptainer begin as scripts.)
_PROGRAMS = (_ELF, b"#!")
#: How many bytes are searched for a superblock.
_SCANNED = 32 << 20
_PIECE = 1 << 20
#: How many places that look like superblocks are checked further.
_CANDIDATES = 64
#: Major and minor, as they are on disk.
_VERSION = b"\4\0\0\0"

#: The magic number and two other bytes of a superblock; `_may_be_superblock` checks more.
_MAGICS = re.compile(re.escape(MAGIC) + rb"(?=.{8}\0.{9}[\x0c-\x14])", re.DOTALL)

_ELF_SIZE = 64
#: e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, from their offset on (elf(5)).
_SECTIONS_32 = 32, "IIHHHHH"
_SECTIONS_64 = 40, "QIHHHHH"


def find_offset(source: Source, *, anywhere: bool) -> int | None:
    """Where the file system begins, in bytes; None if there is none.

    `anywhere`: search even if the source does not begin with a program. Raises OSError if the source can't be read.
    """
    head = source.pread(_ELF_SIZE, 0)
    if _is_superblock(source, 0):
        return 0
    if head.startswith(_ELF):
        end = _end_of_elf(head)
        if end is not None and _is_superblock(source, end):
            return end
    if anywhere or head.startswith(_PROGRAMS):
        candidates = islice(_occurrences(source), _CANDIDATES)
        return next((at for at in candidates if _is_superblock(source, at)), None)
    return None


def _may_be_superblock(data: bytes) -> bool:
    """Is the version right, and do the two fields for the block size agree? Few other bytes pass this."""
    return data[28:32] == _VERSION and 12 <= data[22] <= 20 and data[12:16] == (1 << data[22]).to_bytes(4, "little")


def _is_superblock(source: Source, offset: int) -> bool:
    try:
        superblock = parse_superblock(source.pread(SUPERBLOCK_SIZE, offset), "")
    except (DamagedSourceError, OverflowError):
        return False
    # A program may contain what looks like a superblock, by chance or because it writes them. But such a file system
    # hardly fits before the end of the source.
    return offset == 0 or superblock.bytes_used <= source.size - offset


def _end_of_elf(head: bytes) -> int | None:
    """Where an ELF file ends, given that linkers put the section headers last; None if the header is too short."""
    try:
        offset, fields = _SECTIONS_64 if head[4] == 2 else _SECTIONS_32
        order = ">" if head[5] == 2 else "<"
        start, _flags, _size, _segment_size, _segments, section_size, sections = Struct(order + fields).unpack_from(
            head, offset
        )
    except (IndexError, error):
        return None
    end: int = start + section_size * sections
    return end


def _occurrences(source: Source) -> Iterator[int]:
    """The offsets in the first `_SCANNED` bytes at which there may be a superblock."""
    overlap = SUPERBLOCK_SIZE - 1
    for start in range(0, min(source.size, _SCANNED), _PIECE):
        piece = source.pread(_PIECE + overlap, start)
        for match in _MAGICS.finditer(piece, 0, _PIECE + len(MAGIC) - 1):
            at = match.start()
            if _may_be_superblock(piece[at : at + SUPERBLOCK_SIZE]):
                yield start + at
