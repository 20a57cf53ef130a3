"""Requests that change a file system, as calls of a `WritableFileSystem`."""

from __future__ import annotations

import errno
import os
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable

from viewfs.errors import os_error
from viewfs.modules.api import Answer, Attributes, FileSystem, InodeNumber, OpenFile, WritableFileSystem
from viewfs.mounts.fuse import protocol
from viewfs.mounts.fuse.answers import Body, done, then
from viewfs.mounts.fuse.protocol import Opcode, Request, SetAttr

__all__ = ["Changing"]

#: FS_IOC_GETFLAGS of linux/fs.h, for programs of 64 and of 32 bits.
_GETFLAGS, _GETFLAGS_32 = 0x80086601, 0x80046601


class Changing:
    """The handlers of these requests, for `Operations`."""

    _fs: FileSystem
    _writable: WritableFileSystem | None

    @abstractmethod
    def _inode(self, node: int) -> InodeNumber: ...

    @abstractmethod
    def _name(self, name: bytes) -> bytes: ...

    @abstractmethod
    def _entry(self, attributes: Attributes | None) -> bytes: ...

    @abstractmethod
    def _attributes(self, attributes: Attributes) -> bytes: ...

    @abstractmethod
    def _open_file(self, handle: int) -> OpenFile: ...

    @abstractmethod
    def _opened(self, opened: OpenFile | None) -> bytes: ...

    def changing_handlers(self) -> dict[int, Callable[[Request], Answer[Body]]]:
        """The handlers by opcode."""
        return {
            Opcode.LSEEK: self._lseek,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.IOCTL: self._ioctl,
            Opcode.SETATTR: self._setattr,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.SYMLINK: self._symlink,
            Opcode.LINK: self._link,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.SETXATTR: self._setxattr,
            Opcode.REMOVEXATTR: self._removexattr,
        }

    def _lseek(self, request: Request) -> Answer[Body]:
        handle, offset, whence = request.fields[:3]
        if not handle:
            raise os_error(errno.ENOSYS)  # the kernel then takes the whole file for data
        return then(self._open_file(handle).lseek(offset, whence), protocol.encode_position)

    def _fallocate(self, request: Request) -> Answer[Body]:
        handle, offset, length, mode = request.fields[:4]
        if not handle:
            raise os_error(errno.EOPNOTSUPP)
        return then(self._open_file(handle).fallocate(mode, offset, length), done)

    def _fsyncdir(self, request: Request) -> Answer[Body]:
        return then(self._changes.fsyncdir(self._inode(request.node)), done)

    def _ioctl(self, request: Request) -> Answer[Body]:
        """Only FS_IOC_GETFLAGS; its argument is declared as a long but is an int."""
        handle, _flags, command = request.fields[:3]
        if command not in (_GETFLAGS, _GETFLAGS_32) or not handle:
            raise os_error(errno.ENOTTY)
        return then(
            self._open_file(handle).get_flags(), lambda flags: protocol.encode_ioctl(0, flags.to_bytes(4, "little"))
        )

    @property
    def _changes(self) -> WritableFileSystem:
        if self._writable is None:
            raise os_error(errno.EROFS)
        return self._writable

    def _setattr(self, request: Request) -> Answer[Body]:
        (
            valid, _padding, _handle, size, _owner, atime, mtime, _ctime,
            atime_ns, mtime_ns, _ctime_ns, mode, _unused, uid, gid, _unused2,
        ) = request.fields  # fmt: skip
        asked = SetAttr(valid & 0x1FF)
        now = time.time_ns()
        values = {
            SetAttr.MODE: ("mode", mode),
            SetAttr.UID: ("uid", uid),
            SetAttr.GID: ("gid", gid),
            SetAttr.SIZE: ("size", size),
            SetAttr.ATIME: ("atime_ns", atime * 1_000_000_000 + atime_ns),
            SetAttr.MTIME: ("mtime_ns", mtime * 1_000_000_000 + mtime_ns),
            SetAttr.ATIME_NOW: ("atime_ns", now),
            SetAttr.MTIME_NOW: ("mtime_ns", now),
        }
        changes = dict(value for flag, value in values.items() if flag in asked)
        return then(self._changes.setattr(self._inode(request.node), changes), self._attributes)

    def _create(self, request: Request) -> Answer[Body]:
        """Make a regular file and open it."""
        flags, mode = request.fields[:2]
        name, directory = self._name(request.names()[0]), self._inode(request.node)
        return self._open_made(self._changes.create(directory, name, mode, request.uid, request.gid), flags)

    def _tmpfile(self, request: Request) -> Answer[Body]:
        """Make a regular file without a name and open it."""
        flags, mode = request.fields[:2]
        made = self._changes.tmpfile(self._inode(request.node), mode, request.uid, request.gid)
        return self._open_made(made, flags & ~os.O_TMPFILE)

    def _open_made(self, made: Answer[Attributes], flags: int) -> Answer[Body]:
        if not isinstance(made, Attributes):
            return self._create_later(made, flags)
        opened = self._fs.open(made.ino, flags & ~(os.O_CREAT | os.O_EXCL))
        return then(opened, lambda file: self._entry(made) + self._opened(file))

    async def _create_later(self, making: Awaitable[Attributes], flags: int) -> bytes:
        made = await making
        opening = self._fs.open(made.ino, flags & ~(os.O_CREAT | os.O_EXCL))
        opened = await opening if isinstance(opening, Awaitable) else opening
        return self._entry(made) + self._opened(opened)

    def _mknod(self, request: Request) -> Answer[Body]:
        mode, device = request.fields[:2]
        name, rdev = self._name(request.names()[0]), protocol.decode_device(device)
        directory = self._inode(request.node)
        return then(self._changes.create(directory, name, mode, request.uid, request.gid, rdev), self._entry)

    def _mkdir(self, request: Request) -> Answer[Body]:
        name, directory = self._name(request.names()[0]), self._inode(request.node)
        return then(self._changes.mkdir(directory, name, request.fields[0], request.uid, request.gid), self._entry)

    def _symlink(self, request: Request) -> Answer[Body]:
        name, target = request.names()
        directory = self._inode(request.node)
        made = self._changes.symlink(directory, self._name(name), target, request.uid, request.gid)
        return then(made, self._entry)

    def _link(self, request: Request) -> Answer[Body]:
        inode, name = self._inode(request.fields[0]), self._name(request.names()[0])
        return then(self._changes.link(inode, self._inode(request.node), name), self._entry)

    def _unlink(self, request: Request) -> Answer[Body]:
        return then(self._changes.unlink(self._inode(request.node), request.names()[0]), done)

    def _rmdir(self, request: Request) -> Answer[Body]:
        return then(self._changes.rmdir(self._inode(request.node), request.names()[0]), done)

    def _rename(self, request: Request) -> Answer[Body]:
        name, new_name = request.names()
        flags = request.fields[1] if request.opcode == Opcode.RENAME2 else 0
        directory, new_directory = self._inode(request.node), self._inode(request.fields[0])
        return then(self._changes.rename(directory, name, new_directory, self._name(new_name), flags), done)

    def _setxattr(self, request: Request) -> Answer[Body]:
        name, _, value = request.rest.partition(b"\0")
        size, flags = request.fields[:2]
        inode, file_system = self._inode(request.node), self._changes
        if not flags & (os.XATTR_CREATE | os.XATTR_REPLACE):
            return then(file_system.setxattr(inode, name, value[:size]), done)

        def check(there: bytes | None) -> None:
            if there is not None and flags & os.XATTR_CREATE:
                raise os_error(errno.EEXIST)
            if there is None and flags & os.XATTR_REPLACE:
                raise os_error(errno.ENODATA)

        found = file_system.getxattr(inode, name)
        if not isinstance(found, Awaitable):
            check(found)
            return then(file_system.setxattr(inode, name, value[:size]), done)

        async def later(finding: Awaitable[bytes | None]) -> bytes:
            check(await finding)
            setting = file_system.setxattr(inode, name, value[:size])
            if isinstance(setting, Awaitable):
                await setting
            return b""

        return later(found)

    def _removexattr(self, request: Request) -> Answer[Body]:
        return then(self._changes.removexattr(self._inode(request.node), request.rest.rstrip(b"\0")), done)
