"""Recognizing a source that no module mounts, by its magic number, and telling what to do with it instead.

The table is searched from first to last: a format that wraps another comes before those that it may contain. A
signature is bytes at an offset (in bytes), as the format's own specification gives them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from viewfs.modules.api import Source

__all__ = ["Recognized", "recognize", "recognize_nondescript"]

_SECTOR_SIZES = (512, 4096)
_MBR_TABLE = 446
_MBR_ENTRIES = 4
_GPT_ENTRIES = 128
#: Types of MBR partitions that contain other partitions, or protect a GPT.
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_LOOKED_AT = 4096


class Recognized(NamedTuple):
    """A kind of source, and what to type next."""

    #: As a sentence has it: “a gzip file”.
    kind: str
    remedy: str


class _Signature(NamedTuple):
    kind: str
    offset: int
    magic: bytes
    #: NAME stands for the source.
    remedy: str


_CONVERT = "convert it first: qemu-img convert -O raw NAME disk.img"
_NO_READER = "there is no reader for this yet"
_NO_DISK_READER = f"{_NO_READER}; the kernel has one: mount it as root"


def _unpack(command: str) -> str:
    return f"unpack it first: {command}"


def _extract(command: str) -> str:
    return f"{_NO_READER}; unpack it into a directory: {command}"


_SIGNATURES = (
    # Compressed files
    _Signature("a gzip file", 0, b"\x1f\x8b", _unpack("gzip -dk NAME")),
    _Signature("an xz file", 0, b"\xfd7zXZ\0", _unpack("xz -dk NAME")),
    _Signature("a bzip2 file", 0, b"BZh", _unpack("bzip2 -dk NAME")),
    _Signature("a zstd file", 0, b"\x28\xb5\x2f\xfd", _unpack("zstd -dk NAME")),
    _Signature("an lz4 file", 0, b"\x04\x22\x4d\x18", _unpack("lz4 -dk NAME")),
    _Signature("an lzip file", 0, b"LZIP", _unpack("lzip -dk NAME")),
    _Signature("an lzop file", 0, b"\x89LZO\0\r\n\x1a\n", _unpack("lzop -d NAME")),
    _Signature("a file of compress(1)", 0, b"\x1f\x9d", _unpack("uncompress -k NAME")),
    # Disks in a format of their own
    _Signature("a qcow2 disk", 0, b"QFI\xfb", _CONVERT),
    _Signature("a VMDK disk", 0, b"KDMV", _CONVERT),
    _Signature("the description of a VMDK disk", 0, b"# Disk DescriptorFile", _CONVERT),
    _Signature("a VMDK disk of ESX", 0, b"COWD", _CONVERT),
    _Signature("a VHDX disk", 0, b"vhdxfile", _CONVERT),
    _Signature("a VHD disk", 0, b"conectix", _CONVERT),
    _Signature("a VDI disk", 64, b"\x7f\x10\xda\xbe", _CONVERT),
    _Signature("a QED disk", 0, b"QED\0", _CONVERT),
    _Signature("a Parallels disk", 0, b"WithoutFreeSpace", _CONVERT),
    _Signature("a Parallels disk", 0, b"WithouFreSpacExt", _CONVERT),
    _Signature("an EWF (EnCase) image", 0, b"EVF\x09\x0d\x0a\xff\0", "export it first: ewfexport -t disk -f raw NAME"),
    _Signature("an AFF image", 0, b"AFF10\r\n\0", "convert it first: affconvert -r NAME"),
    _Signature("an Android sparse image", 0, b"\x3a\xff\x26\xed", "convert it first: simg2img NAME disk.img"),
    # Archives
    _Signature("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c", _extract("7z x -oDIRECTORY NAME")),
    _Signature("a zip archive", 0, b"PK\x03\x04", _extract("unzip -d DIRECTORY NAME")),
    _Signature("an empty zip archive", 0, b"PK\x05\x06", "there is nothing in it"),
    _Signature("a rar archive", 0, b"Rar!\x1a\x07", _extract("unrar x NAME DIRECTORY/")),
    _Signature("a cabinet archive", 0, b"MSCF", _extract("cabextract -d DIRECTORY NAME")),
    _Signature("a xar archive", 0, b"xar!", _extract("bsdtar -C DIRECTORY -xf NAME")),
    _Signature("a Debian package", 0, b"!<arch>\ndebian-binary", _extract("dpkg-deb -x NAME DIRECTORY")),
    _Signature("an ar archive", 0, b"!<arch>\n", _extract("ar x --output DIRECTORY NAME")),
    _Signature("an RPM package", 0, b"\xed\xab\xee\xdb", _extract("bsdtar -C DIRECTORY -xf NAME")),
    _Signature("a cpio archive", 0, b"070701", _extract("cpio -idD DIRECTORY < NAME")),
    _Signature("a cpio archive", 0, b"070702", _extract("cpio -idD DIRECTORY < NAME")),
    _Signature("a cpio archive", 0, b"070707", _extract("cpio -idD DIRECTORY < NAME")),
    _Signature("a cpio archive", 0, b"\xc7\x71", _extract("cpio -idD DIRECTORY < NAME")),
    _Signature("a tar archive", 257, b"ustar", _extract("tar -C DIRECTORY -xf NAME")),
    # Encryption, volumes, RAID
    _Signature("a LUKS container", 0, b"LUKS\xba\xbe", "open it first, as root: cryptsetup open NAME disk"),
    _Signature("a BitLocker volume", 3, b"-FVE-FS-", "open it first, as root: cryptsetup open --type bitlk NAME disk"),
    _Signature("a physical volume of LVM", 512, b"LABELONE", "activate it first, as root: vgchange -ay"),
    _Signature("a member of an MD RAID", 4096, b"\xfc\x4e\x2b\xa9", "assemble it first, as root: mdadm --assemble"),
    _Signature("a bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", _NO_READER),
    _Signature("a dm-verity hash tree", 0, b"verity\0\0", "mount the image that it is of"),
    # File systems
    _Signature("an ISO 9660 image", 32769, b"CD001", _extract("bsdtar -C DIRECTORY -xf NAME")),
    _Signature("a UDF image", 32769, b"BEA01", _extract("7z x -oDIRECTORY NAME")),
    _Signature("an XFS file system", 0, b"XFSB", _NO_DISK_READER),
    _Signature("a btrfs file system", 65600, b"_BHRfS_M", _NO_DISK_READER),
    _Signature("an EROFS file system", 1024, b"\xe2\xe1\xf5\xe0", _extract("fsck.erofs --extract=DIRECTORY NAME")),
    _Signature("an NTFS file system", 3, b"NTFS    ", f"{_NO_READER}; ntfs-3g mounts it"),
    _Signature("a ReFS file system", 3, b"ReFS\0", _NO_READER),
    _Signature("an F2FS file system", 1024, b"\x10\x20\xf5\xf2", _NO_DISK_READER),
    _Signature("a bcachefs file system", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9", _NO_DISK_READER),
    _Signature("a ReiserFS file system", 65588, b"ReIsEr", _NO_DISK_READER),
    _Signature("a JFS file system", 32768, b"JFS1", _NO_DISK_READER),
    _Signature("a NILFS2 file system", 1030, b"\x34\x34", _NO_DISK_READER),
    _Signature("an APFS container", 32, b"NXSB", f"{_NO_READER}; apfs-fuse mounts it"),
    _Signature("an HFS+ file system", 1024, b"H+\0\x04", _NO_DISK_READER),
    _Signature("an HFSX file system", 1024, b"HX\0\x05", _NO_DISK_READER),
    _Signature("a UFS file system", 9564, b"\x54\x19\x01\0", _NO_DISK_READER),
    _Signature("a UFS2 file system", 66908, b"\x19\x01\x54\x19", _NO_DISK_READER),
    _Signature("a minix file system", 1040, b"\x7f\x13", _NO_DISK_READER),
    _Signature("a minix file system", 1040, b"\x8f\x13", _NO_DISK_READER),
    _Signature("a minix file system", 1040, b"\x68\x24", _NO_DISK_READER),
    _Signature("a minix file system", 1040, b"\x78\x24", _NO_DISK_READER),
    _Signature("a minix file system", 1048, b"\x5a\x4d", _NO_DISK_READER),
    _Signature("a cramfs image", 0, b"\x45\x3d\xcd\x28", _NO_DISK_READER),
    _Signature("a romfs image", 0, b"-rom1fs-", _NO_DISK_READER),
    _Signature("a JFFS2 image", 0, b"\x85\x19", _NO_READER),
    _Signature("a UBI image", 0, b"UBI#", f"{_NO_READER}; unpack it: ubireader_extract_files NAME"),
    _Signature("a squashfs of another version than 4.0", 0, b"hsqs", _extract("unsquashfs -d DIRECTORY NAME")),
    _Signature("a squashfs of big-endian machines", 0, b"sqsh", _extract("unsquashfs -d DIRECTORY NAME")),
    _Signature("a squashfs of another maker", 0, b"shsq", _NO_READER),
    _Signature("a squashfs of another maker", 0, b"qshs", _NO_READER),
    _Signature("swap space", 4086, b"SWAPSPACE2", "there are no files in it"),
    _Signature("the image of a hibernated machine", 4086, b"S1SUSPEND", "there are no files in it"),
    # Other things that people have
    _Signature("an Apple disk image", 0, b"koly", "convert it first: dmg2img NAME disk.img"),
    _Signature("a program", 0, b"\x7fELF", "it is no image, and none was found behind it: name one, or a directory"),
    _Signature("a program for Windows", 0, b"MZ", f"{_NO_READER}; if it is an archive: 7z x -oDIRECTORY NAME"),
    _Signature("a script", 0, b"#!", "it is no image, and none was found behind it: name one, or a directory"),
    _Signature("a PDF file", 0, b"%PDF-", "it is no image: name one, or a directory"),
    _Signature("an SQLite database", 0, b"SQLite format 3\0", "it is no image: name one, or a directory"),
    _Signature("a picture (PNG)", 0, b"\x89PNG\r\n\x1a\n", "it is no image of a disk: name one, or a directory"),
    _Signature("a picture (JPEG)", 0, b"\xff\xd8\xff", "it is no image of a disk: name one, or a directory"),
)


#: Of a master directory block: drSigWord, and from byte 18 on drNmAlBlks and drAlBlkSiz (Inside Macintosh: Files).
_HFS = struct.Struct(">2s16xHI")


def _is_hfs(block: bytes) -> bool:
    if len(block) < _HFS.size:
        return False
    magic, count, size = _HFS.unpack(block)
    return bool(magic == b"BD" and count > 0 and size > 0 and size % 512 == 0)


def recognize(source: Source, name: str) -> Recognized | None:
    """The kind of `source`, called `name`, by its magic number; None if that is not known. Raises OSError."""
    for signature in _SIGNATURES:
        if source.pread(len(signature.magic), signature.offset) == signature.magic:
            return Recognized(signature.kind, signature.remedy.replace("NAME", name))
    if source.size >= 512 and source.pread(8, source.size - 512) == b"conectix":
        return Recognized("a VHD disk", _CONVERT.replace("NAME", name))
    if _is_hfs(source.pread(_HFS.size, 1024)):
        return Recognized("an HFS file system", _NO_DISK_READER.replace("NAME", name))
    if source.size >= 512 and source.pread(4, source.size - 512) == b"koly":
        return Recognized("an Apple disk image", f"convert it first: dmg2img {name} disk.img")
    for label, starts in (("GPT", list(_gpt(source))), ("MBR", list(_mbr(source)))):
        if starts:
            return Recognized(
                f"a disk with partitions ({label})",
                f"`viewfs mount -t partitions {name} /dev/disk` makes devices of them (/dev/disk1 …), and"
                f" -o offset={_size(starts[0])} mounts what lies in the first",
            )
    return None


def recognize_nondescript(source: Source) -> Recognized | None:
    """The kind of a source without a magic number; None if that is not known. Raises OSError."""
    if not source.size:
        return Recognized("an empty file", "there is nothing in it to mount")
    head = source.pread(_LOOKED_AT, 0)
    if not head.strip(b"\0"):
        zeros = "nothing but zeros" if source.size <= len(head) else "zeros at its beginning"
        return Recognized(f"a file with {zeros}", "if there is a file system further on: -o offset=SIZE -t TYPE")
    if b"\0" not in head and _is_text(head):
        return Recognized("a text", "it is no image: name one, or a directory")
    return None


def _is_text(head: bytes) -> bool:
    try:
        head[:-4].decode()  # a character may be cut off at the end
    except UnicodeDecodeError:
        return False
    return not any(byte < 7 for byte in head)


def _gpt(source: Source) -> Iterator[int]:
    """Where partitions begin, in bytes, by the primary header (UEFI specification, section 5.3)."""
    for sector in _SECTOR_SIZES:
        header = source.pread(92, sector)
        if len(header) < 92 or header[:8] != b"EFI PART":
            continue
        table, count, size = struct.unpack_from("<QII", header, 72)
        if size < 128 or table > source.size // sector:
            continue
        found = False
        for index in range(min(count, _GPT_ENTRIES)):
            entry = source.pread(48, table * sector + index * size)
            if len(entry) == 48 and any(entry[:16]):
                found = True
                yield struct.unpack_from("<Q", entry, 32)[0] * sector
        if not found:
            yield sector


def _mbr(source: Source) -> Iterator[int]:
    """Where partitions begin, in bytes, if the first sector has a plausible partition table."""
    boot = source.pread(512, 0)
    if len(boot) < 512 or boot[510:] != b"\x55\xaa":
        return
    starts = []
    for index in range(_MBR_ENTRIES):
        status, kind, first, count = struct.unpack_from("<B3xB3xII", boot, _MBR_TABLE + 16 * index)
        if status not in (0, 0x80):
            return
        if kind and count:
            if first * 512 >= source.size and kind != _PROTECTIVE:
                return
            starts.append((kind in _EXTENDED or kind == _PROTECTIVE, first * 512))
    yield from (start for _is_list, start in sorted(starts))


def _size(count: int) -> str:
    """A number of bytes as the option `offset` takes it."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{unit}"
    return str(count)
