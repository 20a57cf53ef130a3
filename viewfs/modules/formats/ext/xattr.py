"""Extended attributes, in the inode and in a block of their own (Documentation/filesystems/ext4/attributes.rst)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from viewfs.modules.formats.ext.checksums import crc32c, stored
from viewfs.modules.framework.damage import damaged

__all__ = ["Attribute", "acl_to_wire", "parse_block", "parse_inode_tail", "value_hash", "verify_hash"]

_MAGIC = 0xEA020000
_ENTRY = struct.Struct("<BBHIII")
_BLOCK_HEADER = 32
_BLOCK_CHECKSUM = 16
#: XATTR_SIZE_MAX (linux/limits.h): no value is larger.
_MAX_VALUE = 65536

_ACL_ACCESS, _ACL_DEFAULT, SYSTEM = 2, 3, 7
#: The values of e_name_index that system calls can see: not those of fscrypt and of inline_data.
_PREFIXES = {
    1: b"user.",
    _ACL_ACCESS: b"system.posix_acl_access",
    _ACL_DEFAULT: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    10: b"gnu.",
}


class Attribute(NamedTuple):
    """struct ext4_xattr_entry, with its value unless that is in an inode of its own."""

    #: e_name_index, which stands for the beginning of the full name.
    space: int
    name: bytes
    value: bytes
    #: The inode that has the value (ea_inode), or 0.
    value_inode: int
    value_size: int
    #: e_hash, computed from the name and the hash of the value.
    hash: int

    @property
    def full_name(self) -> bytes | None:
        """The name that listxattr(2) returns; None if the attribute is not listed."""
        prefix = _PREFIXES.get(self.space)
        if prefix is None or bool(self.name) == (self.space in (_ACL_ACCESS, _ACL_DEFAULT)):
            return None
        return prefix + self.name

    @property
    def is_acl(self) -> bool:
        return self.space in (_ACL_ACCESS, _ACL_DEFAULT)


def parse_inode_tail(tail: bytes) -> Sequence[Attribute]:
    """The attributes behind the fields of an inode. Raises OSError(EUCLEAN)."""
    if len(tail) < 8 or int.from_bytes(tail[:4], "little") != _MAGIC:
        return ()
    return _parse_attributes(tail, 4, 4)


def parse_block(data: bytes, number: int, seed: int | None) -> Sequence[Attribute]:
    """The attributes in block `number`; `seed` is None without metadata_csum. Raises OSError(EUCLEAN)."""
    magic, _references, blocks = struct.unpack_from("<III", data)
    if magic != _MAGIC or blocks != 1:
        raise damaged("a block of extended attributes has no valid header")
    if seed is not None:
        view = memoryview(data)
        value = crc32c(number.to_bytes(8, "little") + data[:_BLOCK_CHECKSUM] + b"\0\0\0\0", seed)
        value = crc32c(view[_BLOCK_CHECKSUM + 4 :], value)
        if stored(value) != int.from_bytes(data[_BLOCK_CHECKSUM : _BLOCK_CHECKSUM + 4], "little"):
            raise damaged("the checksum of a block of extended attributes is wrong")
    return _parse_attributes(data, _BLOCK_HEADER, 0)


def _parse_attributes(data: bytes, position: int, base: int) -> Sequence[Attribute]:
    """The entries from `position` on, up to four zero bytes; offsets of values count from `base`."""
    attributes: list[Attribute] = []
    first_value = end = len(data)
    while True:
        if position + 4 > end:
            raise damaged("a list of extended attributes does not end")
        if data[position : position + 4] == b"\0\0\0\0":
            if first_value < position + 4:
                raise damaged("the value of an extended attribute lies in the list of them")
            return attributes
        if position + _ENTRY.size > end:
            raise damaged("a list of extended attributes does not end")
        length, index, offset, inode, size, hash_ = _ENTRY.unpack_from(data, position)
        name_start = position + _ENTRY.size
        if name_start + length > end:
            raise damaged("an extended attribute has an impossible name")
        value = b""
        if size > _MAX_VALUE or (not inode and base + offset + size > end):
            raise damaged(f"an extended attribute has an impossible value of {size} bytes")
        if not inode and size:
            first_value = min(first_value, base + offset)
            value = data[base + offset : base + offset + size]
        name = data[name_start : name_start + length]
        if b"\0" in name:
            raise damaged("an extended attribute has an impossible name")
        attributes.append(Attribute(index, name, value, inode, size, hash_))
        position = name_start + (length + 3 & ~3)


def value_hash(value: bytes, seed: int) -> int:
    """The hash that the inode of a value stores as its access time (ext4_xattr_inode_set_hash)."""
    return stored(crc32c(value, seed))


def verify_hash(attribute: Attribute, value: bytes, inode_hash: int, seed: int) -> None:
    """Check the value of an attribute in an inode of its own. Raises OSError(EUCLEAN)."""
    found = value_hash(value, seed)
    # Some kernels hashed names as signed characters on machines where `char` is signed.
    hashes = (_entry_hash(attribute.name, found, signed=False), _entry_hash(attribute.name, found, signed=True))
    if found != inode_hash or attribute.hash not in hashes:
        raise damaged("the hash of an extended attribute's value is wrong")


def _entry_hash(name: bytes, hashed_value: int, *, signed: bool) -> int:
    """e_hash (attributes.rst)."""
    value = 0
    for byte in name:
        character = byte - 256 if signed and byte > 127 else byte
        value = (value << 5 ^ value >> 27 ^ character) & 0xFFFFFFFF
    return (value << 16 ^ value >> 16 ^ hashed_value) & 0xFFFFFFFF


_ACL_DISK_VERSION = 1
_ACL_WIRE_VERSION = 2
_ACL_USER, _ACL_GROUP = 0x02, 0x08
_ACL_WITHOUT_ID = (0x01, 0x04, 0x10, 0x20)
_ACL_NO_ID = 0xFFFFFFFF


def acl_to_wire(value: bytes) -> bytes:
    """A POSIX ACL as getxattr(2) returns it (linux/posix_acl_xattr.h), from ext4's form, where most entries have no id.

    Raises OSError(EUCLEAN).
    """
    if len(value) < 4 or int.from_bytes(value[:4], "little") != _ACL_DISK_VERSION:
        raise damaged("an access control list is of an unknown version")
    wire = [struct.pack("<I", _ACL_WIRE_VERSION)]
    position = 4
    while position < len(value):
        if position + 4 > len(value):
            raise damaged("an access control list is cut off")
        tag, permissions = struct.unpack_from("<HH", value, position)
        position += 4
        owner = _ACL_NO_ID
        if tag in (_ACL_USER, _ACL_GROUP):
            if position + 4 > len(value):
                raise damaged("an access control list is cut off")
            owner = int.from_bytes(value[position : position + 4], "little")
            position += 4
        elif tag not in _ACL_WITHOUT_ID:
            raise damaged(f"an access control list has an entry of an unknown kind, {tag:#x}")
        wire.append(struct.pack("<HHI", tag, permissions, owner))
    return b"".join(wire)
