"""Images of squashfs that are made to lie: taken apart, changed, and put together again.

`Parts` takes an image whose tables are not compressed apart. It reads the format by itself, from
Documentation/filesystems/squashfs.rst and fs/squashfs, so that it shares no error with the reader.
"""

from __future__ import annotations

import lzma
import os
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import lz4.block
import lzallright

from tests.unit.squashfs.squashfs_images import COMPRESSORS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Metadata is cut into blocks of this many bytes before it is compressed.
METADATA = 8192
NOTHING = 0xFFFFFFFFFFFFFFFF
NO_FRAGMENT = 0xFFFFFFFF


def compress(compressor: str, data: bytes, *, quick: bool = False) -> bytes:
    """As mksquashfs does it, or not as well."""
    preset = 0 if quick else None
    if compressor == "gzip":
        return zlib.compress(data, 1 if quick else 9)
    if compressor == "xz":
        return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, preset)
    if compressor == "lzma":
        packed = lzma.compress(data, lzma.FORMAT_ALONE, preset=preset)
        return packed[:5] + struct.pack("<Q", len(data)) + packed[13:]  # The length, which Python leaves open.
    if compressor == "lzo":
        return lzallright.LZOCompressor().compress(data)
    if compressor == "lz4":
        return lz4.block.compress(data, store_size=False)
    assert compressor == "zstd"
    return zstd.compress(data)


def decompress(compressor: str, data: bytes) -> bytes:
    """A metadata block."""
    if compressor == "gzip":
        return zlib.decompress(data)
    if compressor in ("xz", "lzma"):
        return lzma.decompress(data)
    if compressor == "lzo":
        return bytes(lzallright.LZOCompressor().decompress(data, METADATA))
    if compressor == "lz4":
        return lz4.block.decompress(data, uncompressed_size=METADATA)
    assert compressor == "zstd"
    return zstd.decompress(data)


Packer = Callable[[bytes], bytes]


def stored(data: bytes) -> bytes:
    """Metadata blocks that are not compressed."""
    parts = [data[place : place + METADATA] for place in range(0, len(data), METADATA)]
    return b"".join(struct.pack("<H", 0x8000 | len(part)) + part for part in parts)


def packed(compressor: str, size: int = METADATA) -> Packer:
    """Metadata blocks that are compressed, of `size` bytes before they are. Those that don't get smaller are stored,
    as the format has it, and so is what would need more than its 15 bits of length."""

    def pack(data: bytes) -> bytes:
        blocks = []
        for place in range(0, len(data), size):
            part = data[place : place + size]
            small = compress(compressor, part)
            if len(small) >= min(len(part), METADATA):
                blocks.append(stored(part))
            else:
                blocks.append(struct.pack("<H", len(small)) + small)
        return b"".join(blocks)

    return pack


#: Where the fields of the superblock are, and their form (struct squashfs_super_block).
SUPERBLOCK = {
    "magic": (0, "<I"),
    "inodes": (4, "<I"),
    "mkfs_time": (8, "<I"),
    "block_size": (12, "<I"),
    "fragments": (16, "<I"),
    "compression": (20, "<H"),
    "block_log": (22, "<H"),
    "flags": (24, "<H"),
    "ids": (26, "<H"),
    "major": (28, "<H"),
    "minor": (30, "<H"),
    "root": (32, "<Q"),
    "bytes_used": (40, "<Q"),
    "id_table": (48, "<Q"),
    "xattr_table": (56, "<Q"),
    "inode_table": (64, "<Q"),
    "directory_table": (72, "<Q"),
    "fragment_table": (80, "<Q"),
    "export_table": (88, "<Q"),
}
_COMMON = {
    "type": (0, "<H"),
    "mode": (2, "<H"),
    "uid": (4, "<H"),
    "gid": (6, "<H"),
    "mtime": (8, "<I"),
    "number": (12, "<I"),
}
_LINK = {"nlink": (16, "<I"), "size": (20, "<I")}
_DEVICE = {"nlink": (16, "<I"), "rdev": (20, "<I")}
_IPC = {"nlink": (16, "<I")}
#: Where the fields of an inode are, by its type (struct squashfs_*_inode).
INODE: Mapping[int, Mapping[str, tuple[int, str]]] = {
    1: {"start": (16, "<I"), "nlink": (20, "<I"), "size": (24, "<H"), "offset": (26, "<H"), "parent": (28, "<I")},
    2: {"start": (16, "<I"), "fragment": (20, "<I"), "offset": (24, "<I"), "size": (28, "<I"), "blocks": (32, "<I")},
    3: _LINK,
    4: _DEVICE,
    5: _DEVICE,
    6: _IPC,
    7: _IPC,
    8: {
        "nlink": (16, "<I"),
        "size": (20, "<I"),
        "start": (24, "<I"),
        "parent": (28, "<I"),
        "index_count": (32, "<H"),
        "offset": (34, "<H"),
        "xattr": (36, "<I"),
        "index": (40, "<I"),
    },
    9: {
        "start": (16, "<Q"),
        "size": (24, "<Q"),
        "sparse": (32, "<Q"),
        "nlink": (40, "<I"),
        "fragment": (44, "<I"),
        "offset": (48, "<I"),
        "xattr": (52, "<I"),
        "blocks": (56, "<I"),
    },
    10: _LINK,
    11: _DEVICE | {"xattr": (24, "<I")},
    12: _DEVICE | {"xattr": (24, "<I")},
    13: _IPC | {"xattr": (20, "<I")},
    14: _IPC | {"xattr": (20, "<I")},
}
DIRECTORY_HEADER = {"count": (0, "<I"), "start": (4, "<I"), "number": (8, "<I")}
DIRECTORY_ENTRY = {"offset": (0, "<H"), "delta": (2, "<h"), "type": (4, "<H"), "size": (6, "<H"), "name": (8, "<B")}


def peek(data: bytes | bytearray, fields: Mapping[str, tuple[int, str]], name: str, place: int = 0) -> int:
    offset, form = fields[name]
    value: int = struct.unpack_from(form, data, place + offset)[0]
    return value


def poke(data: bytearray, fields: Mapping[str, tuple[int, str]], place: int = 0, **values: int) -> None:
    for name, value in values.items():
        offset, form = fields[name]
        struct.pack_into(form, data, place + offset, value)


def patched(image: bytes, **fields: int) -> bytes:
    """The image with other values in the fields of its superblock."""
    changed = bytearray(image)
    poke(changed, SUPERBLOCK, **fields)
    return bytes(changed)


@dataclass
class Named:
    """A name in a directory: where its inode is in `Parts.inodes`, and it itself in `Parts.directories`."""

    inode: int
    entry: int
    #: The header that the entry is below.
    header: int


@dataclass
class Parts:
    """What an image is made of, whose inodes and names are not compressed. All of it may be changed."""

    superblock: bytearray
    #: From the end of the superblock to the first table: blocks of files and of fragments.
    data: bytearray
    inodes: bytearray
    directories: bytearray
    #: Place in the image, and length with bit 24 set if it is not compressed.
    fragments: list[tuple[int, int]]
    exports: list[int]
    ids: list[int]
    #: Names and values, and for each set of them: where it is, how many names, how many bytes.
    xattrs: bytearray = field(default_factory=bytearray)
    xattr_ids: list[tuple[int, int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, image: bytes) -> Parts:
        superblock = bytearray(image[:96])
        starts = {name: peek(superblock, SUPERBLOCK, name) for name in SUPERBLOCK}

        compressor = COMPRESSORS[starts["compression"] - 1]

        def blocks(start: int, end: int, *, any_form: bool = False) -> bytes:
            """The metadata that fills the image from one place to the other."""
            content = []
            while start < end:
                (size,) = struct.unpack_from("<H", image, start)
                assert any_form or size & 0x8000, "the table is compressed"
                block = image[start + 2 :][: size & 0x7FFF]
                content.append(block if size & 0x8000 else decompress(compressor, block))
                start += 2 + len(block)
            assert start == end
            return b"".join(content)

        def table(start: int, count: int, form: str) -> list[tuple[int, ...]]:
            size = count * struct.calcsize(form)
            index = struct.unpack_from(f"<{-(-size // METADATA)}Q", image, start)
            return list(struct.iter_unpack(form, blocks(index[0], start, any_form=True))) if index else []

        fragments = table(starts["fragment_table"], starts["fragments"], "<QII")
        first_fragments = start_of(image, starts["fragment_table"], len(fragments) * 16)
        exports: list[tuple[int, ...]] = []
        if starts["export_table"] != NOTHING:
            exports = table(starts["export_table"], starts["inodes"], "<Q")
        parts = cls(
            superblock,
            bytearray(image[96 : starts["inode_table"]]),
            bytearray(blocks(starts["inode_table"], starts["directory_table"])),
            bytearray(blocks(starts["directory_table"], first_fragments)),
            [(start, size) for start, size, _ in fragments],
            [reference for (reference,) in exports],
            [number for (number,) in table(starts["id_table"], starts["ids"], "<I")],
        )
        if starts["xattr_table"] != NOTHING:
            place = starts["xattr_table"]
            first, count = struct.unpack_from("<QI", image, place)
            index = struct.unpack_from(f"<{-(-count * 16 // METADATA)}Q", image, place + 16)
            parts.xattrs = bytearray(blocks(first, index[0]))
            parts.xattr_ids = list(struct.iter_unpack("<QII", blocks(index[0], place)))
        return parts

    def assemble(self, pack: Mapping[str, Packer] | None = None, **fields: int) -> bytes:
        """The image. `pack` has, by table, what makes metadata blocks of its bytes; `fields` go into the superblock."""
        packers = dict.fromkeys(("inodes", "directories", "fragments", "exports", "ids", "xattrs", "xattr_ids"), stored)
        packers |= pack or {}
        image = bytearray(self.superblock) + self.data
        starts = {"inode_table": len(image)}
        image += packers["inodes"](bytes(self.inodes))
        starts["directory_table"] = len(image)
        image += packers["directories"](bytes(self.directories))

        def table(name: str, content: bytes, before: bytes = b"") -> int:
            first = len(image)
            blocks = packers[name](content)
            image.extend(blocks)
            start = len(image)
            image.extend(before)
            places, place = [], 0
            while place < len(blocks):
                places.append(first + place)
                place += 2 + ((struct.unpack_from("<H", blocks, place)[0] & 0x7FFF) or 0x8000)
            image.extend(struct.pack(f"<{len(places)}Q", *places))
            return start

        fragments = b"".join(struct.pack("<QII", start, size, 0) for start, size in self.fragments)
        starts["fragment_table"] = table("fragments", fragments)
        starts["export_table"] = NOTHING
        if self.exports:
            starts["export_table"] = table("exports", struct.pack(f"<{len(self.exports)}Q", *self.exports))
        starts["id_table"] = table("ids", struct.pack(f"<{len(self.ids)}I", *self.ids))
        starts["xattr_table"] = NOTHING
        if self.xattr_ids:
            first = len(image)
            image += packers["xattrs"](bytes(self.xattrs))
            header = struct.pack("<QII", first, len(self.xattr_ids), 0)
            sets = b"".join(struct.pack("<QII", *entry) for entry in self.xattr_ids)
            starts["xattr_table"] = table("xattr_ids", sets, header)
        counts = {"fragments": len(self.fragments), "ids": len(self.ids) & 0xFFFF, "bytes_used": len(image)}
        poke(image, SUPERBLOCK, **(starts | counts | fields))
        return bytes(image)

    def find(self, path: str) -> Named:
        reference = peek(self.superblock, SUPERBLOCK, "root")
        named = Named(place_of(reference), -1, -1)
        for part in filter(None, os.fsencode(path).split(b"/")):
            named = self.listing(named.inode)[part]
        return named

    def listing(self, inode: int) -> dict[bytes, Named]:
        size = self.get(inode, "size") - 3
        place = place_of(self.get(inode, "start") << 16 | self.get(inode, "offset"))
        end = place + size
        found = {}
        while place < end:
            header = place
            count, start, _number = struct.unpack_from("<III", self.directories, place)
            place += 12
            for _ in range(count + 1):
                offset, _delta, _type, length = struct.unpack_from("<HhHH", self.directories, place)
                name = bytes(self.directories[place + 8 : place + 9 + length])
                found[name] = Named(place_of(start << 16 | offset), place, header)
                place += 9 + length
        return found

    def get(self, inode: int | str, name: str) -> int:
        """A field of the inode at this place of the table, or with this path."""
        place = self.find(inode).inode if isinstance(inode, str) else inode
        kind = peek(self.inodes, _COMMON, "type", place)
        return peek(self.inodes, _COMMON | INODE[kind], name, place)

    def set(self, inode: int | str, **values: int) -> None:
        """Other values for the fields of an inode. Its type is that which it had before."""
        place = self.find(inode).inode if isinstance(inode, str) else inode
        kind = peek(self.inodes, _COMMON, "type", place)
        poke(self.inodes, _COMMON | INODE[kind], place, **values)

    def set_entry(self, path: str, **values: int) -> None:
        poke(self.directories, DIRECTORY_ENTRY, self.find(path).entry, **values)

    def set_header(self, path: str, **values: int) -> None:
        """Of the header that the name at the end of `path` is below."""
        poke(self.directories, DIRECTORY_HEADER, self.find(path).header, **values)

    def redirect(self, path: str, inode: int) -> None:
        """Let a name stand for the inode at this place of the table. All names below the same header then stand for
        what is in the same metadata block; so others than those of `alone` and `apart` go wrong if it is another."""
        block, offset = divmod(inode, METADATA)
        self.set_header(path, start=block * (METADATA + 2))
        self.set_entry(path, offset=offset)

    def add_large(self, inode: bytes) -> int:
        """A new inode that may be larger than a metadata block. Returns where it is."""
        self.inodes += bytes(-len(self.inodes) % METADATA)
        place = len(self.inodes)
        self.inodes += inode
        return place

    def replace(self, path: str, inode: bytes) -> int:
        """Let a name stand for a new inode with these bytes. Returns where it is."""
        if len(self.inodes) % METADATA + len(inode) > METADATA:
            self.inodes += bytes(-len(self.inodes) % METADATA)
        place = len(self.inodes)
        self.inodes += inode
        self.redirect(path, place)
        return place


def place_of(reference: int) -> int:
    """Where in the bytes of a table what is meant that is at `reference`, if no block of it is compressed."""
    return (reference >> 16) // (METADATA + 2) * METADATA + (reference & 0xFFFF)


def start_of(image: bytes, start: int, size: int) -> int:
    """Where the metadata of the table with this index begins; without any bytes, at the index."""
    return int(struct.unpack_from("<Q", image, start)[0]) if size else start
