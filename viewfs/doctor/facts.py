"""What the machine says of itself: read, and not judged."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from dataclasses import dataclass

from viewfs.linux.mountinfo import parse_mountinfo

__all__ = ["FUSE_DEVICE", "Facts", "FuseDevice", "device_number", "read_text", "request_timeout"]

#: The device number of /dev/fuse (Documentation/admin-guide/devices.txt).
FUSE_DEVICE = (10, 229)


@dataclass(frozen=True)
class FuseDevice:
    """What stands at /dev/fuse. `mode` has permission bits only."""

    mode: int = 0o666
    uid: int = 0
    gid: int = 0
    #: It is a character device, and that of FUSE.
    is_fuse: bool = True
    #: The file system that it lies on is mounted nodev, so that it can't be opened.
    nodev: bool = False


_CAP_SETFCAP = 31


@dataclass(frozen=True)
class Facts:
    """What was read from the machine; None where it could not be, or where this kernel does not have it."""

    release: str = ""
    uid: int = 0
    #: Does the user namespace that the caller is in know the caller's uid and gid?
    ids_mapped: bool = True
    initial_user_namespace: bool = True
    proc_mounted: bool = True
    has_user_namespaces: bool = True
    #: CAP_SETFCAP, needed to map uid 0 of the caller's user namespace into a new one (since Linux 5.12)
    may_map_root: bool = True
    #: kernel.unprivileged_userns_clone, which kernels of Debian and others have
    unprivileged_userns_clone: int | None = None
    max_user_namespaces: int | None = None
    max_mnt_namespaces: int | None = None
    max_pid_namespaces: int | None = None
    #: kernel.apparmor_restrict_unprivileged_userns, which Ubuntu has
    apparmor_restrict: int | None = None
    apparmor_label: str | None = None
    #: 0 none, 1 strict, 2 filter
    seccomp: int | None = None
    chrooted: bool | None = None
    #: docker, podman, lxc, systemd-nspawn, …; “unknown” for one that does not say what it is.
    container: str | None = None
    fuse_device: FuseDevice | None = None
    fuse_in_kernel: bool | None = None
    overlay_in_kernel: bool | None = None
    #: The program that an AppArmor profile has to name: the launcher, or the interpreter if that was started by itself.
    program: str = ""

    @classmethod
    def read(cls) -> Facts:
        """Read the facts of this machine and process, as they are now."""
        status = dict(line.split(":", 1) for line in read_text("/proc/self/status").splitlines() if ":" in line)
        file_systems = read_text("/proc/filesystems").split()
        uid_map, gid_map = (_id_map(kind) for kind in ("uid", "gid"))
        return cls(
            release=os.uname().release,
            uid=os.geteuid(),
            ids_mapped=_maps(uid_map, os.geteuid()) and _maps(gid_map, os.getegid()),
            initial_user_namespace=not uid_map or uid_map == [(0, 0, 0xFFFFFFFF)],
            proc_mounted=os.path.exists("/proc/self/status"),
            has_user_namespaces=os.path.exists("/proc/self/ns/user"),
            may_map_root=bool(int(status.get("CapEff", "f" * 16), 16) >> _CAP_SETFCAP & 1),
            unprivileged_userns_clone=_number("/proc/sys/kernel/unprivileged_userns_clone"),
            max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
            max_mnt_namespaces=_number("/proc/sys/user/max_mnt_namespaces"),
            max_pid_namespaces=_number("/proc/sys/user/max_pid_namespaces"),
            apparmor_restrict=_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            apparmor_label=read_text("/proc/self/attr/apparmor/current").strip("\0\n ") or None,
            seccomp=int(status["Seccomp"]) if "Seccomp" in status else None,
            chrooted=_chrooted(),
            container=_container(),
            fuse_device=_fuse_device(),
            fuse_in_kernel="fuse" in file_systems if file_systems else None,
            overlay_in_kernel="overlay" in file_systems if file_systems else None,
            program=_program(),
        )

    @property
    def kernel(self) -> tuple[int, int]:
        """Major and minor number of the kernel; (0, 0) if its release does not begin with them."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def sudo(self) -> str:
        return "" if self.uid == 0 else "sudo "


def read_text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None


def request_timeout() -> int:
    """Seconds after which the kernel ends the connection of a FUSE server that does not answer a request; 0: never.

    The administrator's settings for servers that ask for no other (Documentation/admin-guide/sysctl/fs.rst), from Linux
    6.15 on. The kernel looks every fifteen seconds.
    """
    default, most = (_number(f"/proc/sys/fs/fuse/{name}_request_timeout") or 0 for name in ("default", "max"))
    seconds = min(filter(None, (default, most)), default=0)
    return max(seconds, _TIMEOUT_STEP) if seconds else 0


_TIMEOUT_STEP = 15


def _id_map(kind: str) -> list[tuple[int, int, int]]:
    """The rows of the map: first id inside, first id outside, how many (user_namespaces(7))."""
    rows = [line.split() for line in read_text(f"/proc/self/{kind}_map").splitlines()]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in rows]


def _maps(table: list[tuple[int, int, int]], number: int) -> bool:
    return not table or any(first <= number < first + count for first, _outside, count in table)


def _chrooted() -> bool | None:
    """Is this process in a chroot? Without privilege that shows only if no mount has the root as its mount point: then
    the root lies somewhere below one."""
    table = parse_mountinfo(read_text("/proc/self/mountinfo").encode())
    if table and all(entry.mount_point != "/" for entry in table):
        return True
    with contextlib.suppress(OSError):
        if os.stat("/proc/1/ns/mnt").st_ino == os.stat("/proc/self/ns/mnt").st_ino:
            return not os.path.samefile("/", "/proc/1/root")
    return None


def _container() -> str | None:
    """https://systemd.io/CONTAINER_INTERFACE, and the files by which docker and podman mark what they start."""
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    if os.path.exists("/run/secrets/kubernetes.io"):
        return "kubernetes"
    init = re.search(r"(?:^|\0)container=([^\0]*)", read_text("/proc/1/environ"))
    named = read_text("/run/systemd/container").strip() or (init[1] if init else "")
    return {"lxc-libvirt": "lxc", "oci": "unknown"}.get(named, named) if named else None


def _fuse_device() -> FuseDevice | None:
    try:
        found, mounted = os.stat("/dev/fuse"), os.statvfs("/dev/fuse")
    except OSError:
        return None
    is_fuse = stat.S_ISCHR(found.st_mode) and device_number(found) == FUSE_DEVICE
    return FuseDevice(
        stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, is_fuse, bool(mounted.f_flag & os.ST_NODEV)
    )


def device_number(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _program() -> str:
    """The script that the kernel executed, or the interpreter, if that was named in the command (python -m viewfs)."""
    script = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    if os.path.isfile(script) and os.access(script, os.X_OK):
        return script
    return os.path.realpath(sys.executable)
