"""Feature flags of the superblock, with their names in mke2fs(8) (super.rst, "s_feature_*")."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["READABLE", "Compat", "Incompat", "ReadOnlyCompat", "feature_names"]


class Compat(IntFlag):
    """s_feature_compat: a reader need not know them."""

    DIR_PREALLOC = 0x1
    IMAGIC_INODES = 0x2
    HAS_JOURNAL = 0x4
    EXT_ATTR = 0x8
    RESIZE_INODE = 0x10
    DIR_INDEX = 0x20
    LAZY_BG = 0x40
    EXCLUDE_BITMAP = 0x100
    SPARSE_SUPER2 = 0x200
    FAST_COMMIT = 0x400
    STABLE_INODES = 0x800
    ORPHAN_FILE = 0x1000


class Incompat(IntFlag):
    """s_feature_incompat: a reader that does not know one of them must not go on."""

    COMPRESSION = 0x1
    FILETYPE = 0x2
    NEEDS_RECOVERY = 0x4
    JOURNAL_DEV = 0x8
    META_BG = 0x10
    EXTENT = 0x40
    BIT64 = 0x80
    MMP = 0x100
    FLEX_BG = 0x200
    EA_INODE = 0x400
    DIRDATA = 0x1000
    METADATA_CSUM_SEED = 0x2000
    LARGE_DIR = 0x4000
    INLINE_DATA = 0x8000
    ENCRYPT = 0x10000
    CASEFOLD = 0x20000


class ReadOnlyCompat(IntFlag):
    """s_feature_ro_compat: a writer must know them, a reader need not."""

    SPARSE_SUPER = 0x1
    LARGE_FILE = 0x2
    HUGE_FILE = 0x8
    UNINIT_BG = 0x10
    DIR_NLINK = 0x20
    EXTRA_ISIZE = 0x40
    SNAPSHOT = 0x80
    QUOTA = 0x100
    BIGALLOC = 0x200
    METADATA_CSUM = 0x400
    REPLICA = 0x800
    READ_ONLY = 0x1000
    PROJECT = 0x2000
    SHARED_BLOCKS = 0x4000
    VERITY = 0x8000
    ORPHAN_PRESENT = 0x10000


#: What this reader can read. `encrypt` and `casefold` are properties of single inodes, and are checked there.
READABLE = (
    Incompat.FILETYPE
    | Incompat.NEEDS_RECOVERY
    | Incompat.META_BG
    | Incompat.EXTENT
    | Incompat.BIT64
    | Incompat.MMP
    | Incompat.FLEX_BG
    | Incompat.EA_INODE
    | Incompat.METADATA_CSUM_SEED
    | Incompat.LARGE_DIR
    | Incompat.INLINE_DATA
    | Incompat.ENCRYPT
    | Incompat.CASEFOLD
)

#: Names that mke2fs spells differently.
_SPELLING = {"BIT64": "64bit", "SNAPSHOT": "has_snapshot", "READ_ONLY": "read-only"}
_SETS: tuple[tuple[type[IntFlag], str], ...] = ((Compat, "C"), (Incompat, "I"), (ReadOnlyCompat, "R"))


def feature_names(*values: IntFlag) -> tuple[str, ...]:
    """The flags set in `values`, by name; an unknown bit 17 of Incompat is FEATURE_I17, as e2fsprogs has it."""
    names = []
    for value in values:
        known, letter = next(pair for pair in _SETS if isinstance(value, pair[0]))
        for bit in range(32):
            if int(value) >> bit & 1:
                name = next((flag.name for flag in known if flag == 1 << bit), None)
                names.append(f"FEATURE_{letter}{bit}" if name is None else _SPELLING.get(name, name.lower()))
    return tuple(names)
