"""The vDSO of other processes (vdso(7)): a library that the kernel maps, and that tells the time without a system call.

A program of whose calls for the time somebody else is to answer must make them. So what lies in its vDSO is replaced by
just that, in the program's own copy of that page, before it calls it for the first time.
"""

from __future__ import annotations

import errno
import os
import struct

from viewfs.errors import os_error
from viewfs.linux.memory import process_vm_readv
from viewfs.linux.numbers import AUDIT_ARCH, AUDIT_ARCH_I386, audit_architecture, numbers_by_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["have_time_asked_for", "made_at_the_start"]

_TIMES = ("clock_gettime", "clock_gettime64", "gettimeofday", "time")
#: ELF64 and ELF32 (elf(5)): offset of e_shoff and e_shentsize, which e_shnum follows; a section header's type, offset,
#: size and link; a symbol's name, value and size.
_LAYOUTS = {
    2: (struct.Struct("<40xQ10xHH"), struct.Struct("<4xI16xQQI"), struct.Struct("<I4xQQ"), 24),
    1: (struct.Struct("<32xI10xHH"), struct.Struct("<4xI8xIII"), struct.Struct("<III"), 16),
}
_SHT_DYNSYM = 11


def _code_of_x86_64(number: int) -> bytes:
    return b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x05\xc3"  # mov eax, number; syscall; ret


def _code_of_i386(number: int) -> bytes:
    # push ebx; mov ebx, [esp+8]; mov ecx, [esp+12]; mov eax, number; int 0x80; pop ebx; ret
    return b"\x53\x8b\x5c\x24\x08\x8b\x4c\x24\x0c\xb8" + number.to_bytes(4, "little") + b"\xcd\x80\x5b\xc3"


def _code_of_aarch64(number: int) -> bytes:
    # mov x8, number; svc 0; ret
    return struct.pack("<III", 0xD2800008 | number << 5, 0xD4000001, 0xD65F03C0)


_CODE: dict[int, Callable[[int], bytes]] = {
    AUDIT_ARCH["x86_64"]: _code_of_x86_64,
    AUDIT_ARCH["aarch64"]: _code_of_aarch64,
    AUDIT_ARCH_I386: _code_of_i386,
}
#: Bytes of the vDSO → what has to be written where. (There is one for each word size.)
_known: dict[bytes, list[tuple[int, bytes]]] = {}


def made_at_the_start() -> tuple[str, ...]:
    """Calls of which each program makes one when it begins, before it asks for the time."""
    return ("arch_prctl", "set_thread_area") if audit_architecture() == AUDIT_ARCH["x86_64"] else ("set_tid_address",)


def have_time_asked_for(tid: int) -> None:
    """Have the process of thread `tid` make a system call whenever it asks its vDSO for the time.

    Raises OSError if its vDSO can't be changed (/proc/PID/mem of proc_pid_mem(5)). One without a vDSO makes the calls
    anyway.
    """
    place = _place(tid)
    if place is None:
        return
    start, size = place
    content = bytearray(size)
    process_vm_readv(tid, start, content)
    whole = bytes(content)
    if whole not in _known:
        _known[whole] = list(_changes(whole))
    if not _known[whole]:
        return
    memory = os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, code in _known[whole]:
            os.pwrite(memory, code, start + offset)
    finally:
        os.close(memory)


def _place(tid: int) -> tuple[int, int] | None:
    """Address and size of the vDSO."""
    with open(f"/proc/{tid}/maps") as maps:
        for line in maps:
            if line.endswith("[vdso]\n"):
                start, end = (int(word, 16) for word in line.split(maxsplit=1)[0].split("-"))
                return start, end - start
    return None


def _changes(vdso: bytes) -> Iterator[tuple[int, bytes]]:
    """What has to be written where. Raises OSError(ENOEXEC) for what is no vDSO."""
    try:
        symbols = dict(_symbols(vdso))
    except (struct.error, IndexError, KeyError):
        raise os_error(errno.ENOEXEC) from None
    bits = vdso[4]
    table = audit_architecture() if bits == 2 else AUDIT_ARCH_I386
    numbers = {name: number for number, name in numbers_by_table(_TIMES).get(table, {}).items()}
    for name, number in numbers.items():
        for symbol in (f"__vdso_{name}", f"__kernel_{name}"):
            code = _CODE[table](number)
            if symbol in symbols and symbols[symbol][1] >= len(code):
                offset = symbols[symbol][0]
                if vdso[offset : offset + len(code)] != code:
                    yield offset, code


def _symbols(vdso: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name → offset and size of the functions."""
    header, section, symbol, symbol_size = _LAYOUTS[vdso[4]]
    offset, entry_size, count = header.unpack_from(vdso)
    sections = [section.unpack_from(vdso, offset + number * entry_size) for number in range(count)]
    for kind, start, size, link in sections:
        if kind != _SHT_DYNSYM:
            continue
        names = sections[link][1]
        for at in range(start, start + size, symbol_size):
            name, value, length = symbol.unpack_from(vdso, at)
            end = vdso.index(b"\0", names + name)
            yield vdso[names + name : end].decode("ascii", "replace"), (value, length)
