"""Can this machine open a view? The real sequence is tried in a child, and a failure explained by the machine's state.

Three parts: `Facts`, which are read and not judged; `diagnose`, which turns a step, its errno and the facts into what
to do, and touches nothing; and the attempt, which is made of the functions that a session uses. A setting alone proves
little (on Ubuntu unshare(2) succeeds and the id map is refused), so facts are not asked as long as the steps succeed.

The child and all that it forks hold the report's pipe and share a process group: the pipe's end says that none of them
is left, and one that hangs is ended with the others.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from viewfs.errors import MachineError, ViewfsError
from viewfs.linux.mount import MountAttr, MountFlags, UmountFlags, detached_tmpfs, mount, umount2
from viewfs.linux.mountinfo import parse_mountinfo
from viewfs.linux.namespaces import CloneFlags, unshare
from viewfs.linux.process import die_with_parent
from viewfs.modules.nodes import ComputedFile, Directory, NodeFileSystem
from viewfs.mounts.attach import attach, create_fuse_mount, open_fuse_device
from viewfs.mounts.fuse.counters import Counters
from viewfs.mounts.fuse.host import serve
from viewfs.mounts.skeleton import build_root, make_mount_point, plan_mount_point
from viewfs.namespaces.enter import open_namespace
from viewfs.namespaces.sandbox import Confinement, confine
from viewfs.namespaces.user import IdentityMap, unshare_user_namespace

__all__ = ["STEPS", "Facts", "FuseDevice", "Step", "apparmor_profile", "diagnose", "examine", "works"]

#: Seconds that one step may take; the slowest takes some hundredths.
DEADLINE = 20.0
#: fsopen(2) and the like are of 5.2, mount_setattr(2) of 5.12.
OLDEST_KERNEL = (5, 12)
#: The device number of /dev/fuse (Documentation/admin-guide/devices.txt).
FUSE_DEVICE = (10, 229)


@dataclass(frozen=True)
class _Kind:
    title: str
    #: What a failure's message begins with.
    cannot: str
    required: bool = True
    #: For a step that a view can do without: what needs it.
    needed_for: str = ""


#: The steps by name, in order.
STEPS = {
    "userns": _Kind("user and mount namespace", "cannot create a user namespace"),
    "idmap": _Kind("id map", "cannot write the id map"),
    "mount": _Kind("tmpfs mount", "cannot mount a tmpfs"),
    "root": _Kind("a root of the view's own", "cannot build the root of a view"),
    "device": _Kind("/dev/fuse", "cannot open /dev/fuse"),
    "fuse": _Kind("FUSE mount", "cannot make a FUSE mount"),
    "confine": _Kind("sealed module server", "cannot shut a module server in"),
    "read": _Kind("a file read through FUSE", "cannot read a file through FUSE"),
    "overlay": _Kind("overlay", "cannot mount an overlay", False, "copy-on-write mounts"),
    "pid": _Kind(
        "pid namespace and its /proc",
        "cannot make a pid namespace with a /proc of its own",
        False,
        "`viewfs run --pid`",
    ),
}


@dataclass(frozen=True)
class Step:
    """How one step went. Commands in `remedy` are indented by two blanks; a here-document follows its command."""

    name: str
    title: str
    state: Literal["ok", "failed", "skipped", "warning"]
    detail: str = ""
    remedy: tuple[str, ...] = ()


def works(steps: list[Step]) -> bool:
    """Is all there that a view can't do without?"""
    return all(step.state in ("ok", "warning") for step in steps)


# -- what the machine says


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
    #: CAP_SETFCAP, which it takes to map the uid 0 of the caller's user namespace into a new one (since Linux 5.12)
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
    #: What AppArmor has to know viewfs by: the launcher, or the interpreter if that was started by itself.
    program: str = ""

    @classmethod
    def read(cls) -> Facts:
        """Of this machine and process, now."""
        status = dict(line.split(":", 1) for line in _text("/proc/self/status").splitlines() if ":" in line)
        file_systems = _text("/proc/filesystems").split()
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
            apparmor_label=_text("/proc/self/attr/apparmor/current").strip("\0\n ") or None,
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


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _id_map(kind: str) -> list[tuple[int, int, int]]:
    """First id inside, first id outside, how many (user_namespaces(7))."""
    rows = [line.split() for line in _text(f"/proc/self/{kind}_map").splitlines()]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in rows]


def _maps(table: list[tuple[int, int, int]], number: int) -> bool:
    return not table or any(first <= number < first + count for first, _outside, count in table)


def _chrooted() -> bool | None:
    """Without privilege it shows only where no mount is the root: then the root lies somewhere below one."""
    table = parse_mountinfo(_text("/proc/self/mountinfo").encode())
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
    init = re.search(r"(?:^|\0)container=([^\0]*)", _text("/proc/1/environ"))
    named = _text("/run/systemd/container").strip() or (init[1] if init else "")
    return {"lxc-libvirt": "lxc", "oci": "unknown"}.get(named, named) if named else None


def _fuse_device() -> FuseDevice | None:
    try:
        found, mounted = os.stat("/dev/fuse"), os.statvfs("/dev/fuse")
    except OSError:
        return None
    is_fuse = stat.S_ISCHR(found.st_mode) and _device_number(found) == FUSE_DEVICE
    return FuseDevice(
        stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, is_fuse, bool(mounted.f_flag & os.ST_NODEV)
    )


def _device_number(status: os.stat_result) -> tuple[int, int]:
    return os.major(status.st_rdev), os.minor(status.st_rdev)


def _program() -> str:
    """The script that the kernel executed; its interpreter, if somebody named that (python -m viewfs)."""
    script = os.path.realpath(sys.argv[0]) if sys.argv and sys.argv[0] else ""
    if os.path.isfile(script) and os.access(script, os.X_OK):
        return script
    return os.path.realpath(sys.executable)


# -- what to do

Remedy = tuple[str, ...]

_NSPAWN_DEVICE = "--bind=/dev/fuse --property='DeviceAllow=/dev/fuse rw'"
_REPORT = ("Nothing that is known explains it. Please report it, with what this prints:", "  viewfs doctor --json")


def diagnose(step: str, number: int, facts: Facts) -> Remedy:
    """What to do when `step` failed with errno `number` (0: it had none). Decides by its arguments alone."""
    if number == errno.ENOSYS and step not in ("userns", "confine"):
        if (0, 0) < facts.kernel < OLDEST_KERNEL:
            return (f"This is Linux {facts.release}; viewfs needs {'.'.join(map(str, OLDEST_KERNEL))} or newer.",)
        return _lift_seccomp(facts) if facts.seccomp == 2 else _REPORT
    if number == errno.ETIMEDOUT:
        return (
            "The step did not come to an end and was given up. Please report it, with what this prints:",
            *_REPORT[1:],
        )
    found = _DIAGNOSES[step](number, facts)
    if not found and number == errno.EPERM and facts.seccomp == 2:
        return _lift_seccomp(facts)
    if not found and number in (errno.EPERM, errno.EACCES) and facts.container:
        return ("The container's security profile (AppArmor or SELinux) forbids it.", *_start_container(facts))
    return found or _REPORT


def _user_namespace(number: int, facts: Facts) -> Remedy:
    if number in (errno.ENOSPC, errno.EUSERS):
        return _raise_limit("user", facts.max_user_namespaces, facts)
    if facts.proc_mounted and not facts.has_user_namespaces:
        return ("This kernel was built without user namespaces (CONFIG_USER_NS); boot one that has them.",)
    if number not in (errno.EPERM, errno.EACCES):
        return ()
    if facts.chrooted:
        return (
            "The kernel gives no user namespace to a process in a chroot. Leave it, or use instead of it:",
            f"  {facts.sudo}systemd-nspawn --directory=DIRECTORY {_NSPAWN_DEVICE}",
        )
    if not facts.ids_mapped:
        return (
            "The user namespace you are in has no mapping for your uid or gid, and such a user can create none.",
            "Run viewfs as a user that it has: one in /proc/self/uid_map with its group in /proc/self/gid_map.",
        )
    # The kernel asks for privilege over the machine, which root of a container or of a namespace does not have.
    privileged = facts.uid == 0 and facts.initial_user_namespace and not facts.container
    if facts.unprivileged_userns_clone == 0 and not privileged:
        setting = "kernel.unprivileged_userns_clone"
        return (f"{setting} is 0: only root may create user namespaces.", *_set(setting, 1, facts))
    if number == errno.EPERM and facts.seccomp == 2:
        return _lift_seccomp(facts)
    if _restricted_by_apparmor(facts):
        return _install_profile(facts)
    if number == errno.EACCES:
        return _security_module("creating user namespaces", "userns_create|user_namespace", facts)
    return (
        "Something forbids user namespaces: a chroot, a sandbox that viewfs was started in, or a security module.",
        "Whether it is this program or the whole machine:",
        "  unshare --user --map-current-user true",
    )


def _id_map_of(number: int, facts: Facts) -> Remedy:
    if number == errno.ENOENT or not facts.proc_mounted:
        return (
            "/proc is not mounted here, and the id map is written there:",
            f"  {facts.sudo}mount -t proc proc /proc",
        )
    if number == errno.EROFS:
        return ("/proc is mounted read-only here, and the id map is written there. Mount it writable.",)
    if number == errno.EPERM and facts.uid == 0 and not facts.may_map_root:
        return (
            "You are root without CAP_SETFCAP, and may not take uid 0 into a new user namespace.",
            "Run viewfs as another user, or give root that capability: docker and podman do with --cap-add SETFCAP.",
        )
    if _restricted_by_apparmor(facts):
        return _install_profile(facts)
    if facts.container:
        return _start_container(facts)
    return _security_module("using the new user namespace", "capable", facts)


def _first_mount(number: int, facts: Facts) -> Remedy:
    if number == errno.ENOSPC:
        return (
            "The mount namespace has as many mounts as it may (fs.mount-max).",
            *_set("fs.mount-max", 200000, facts),
        )
    if number in (errno.EACCES, errno.EPERM) and not facts.container:
        if _restricted_by_apparmor(facts):
            return _install_profile(facts)
        return () if facts.seccomp == 2 else _security_module("mounting", "mount", facts)
    return ()


def _new_root(number: int, facts: Facts) -> Remedy:
    if number == errno.EINVAL:
        return (
            "pivot_root(2) refuses: the root may be the initial ramfs. Start viewfs below a root that was mounted.",
        )
    return _first_mount(number, facts)


def _device(number: int, facts: Facts) -> Remedy:
    device = facts.fuse_device
    if device is not None and not device.is_fuse:
        major, minor = FUSE_DEVICE
        return (
            f"What is at /dev/fuse is not the character device {major}, {minor}. If it is a mount (findmnt /dev/fuse), "
            "unmount it; otherwise put the real one there:",
            f"  {facts.sudo}sh -c 'rm -f /dev/fuse && mknod -m 666 /dev/fuse c {major} {minor}'",
        )
    if number == errno.ENOENT:
        if facts.container:
            return ("The container was started without /dev/fuse.", *_start_container(facts))
        if not facts.initial_user_namespace:
            return ("Whoever made this /dev (a container, a sandbox) has to bind the host's /dev/fuse into it.",)
        if facts.fuse_in_kernel:
            return (
                "The kernel has FUSE, but there is no /dev/fuse. Make it:",
                f"  {facts.sudo}mknod -m 666 /dev/fuse c {FUSE_DEVICE[0]} {FUSE_DEVICE[1]}",
            )
        return _load_module("fuse", facts)
    if number in (errno.ENODEV, errno.ENXIO):
        return _load_module("fuse", facts)
    if number == errno.EPERM:
        if facts.container:
            return ("/dev/fuse is there, but the container may not use it (device cgroup).", *_start_container(facts))
        return (
            "The device cgroup forbids it. In a systemd unit this allows it:",
            "  DeviceAllow=/dev/fuse rw",
        )
    if number != errno.EACCES or device is None:
        return ()
    if device.nodev:
        why = "/dev/fuse lies on a file system mounted nodev."
        if facts.container:
            return (why, *_start_container(facts))
        return (why, "Mount that with the option dev, or bind the /dev/fuse of the host's /dev over it.")
    if device.mode & 0o006 != 0o006:
        return (
            f"/dev/fuse has mode {device.mode:04o} and belongs to uid {device.uid}, gid {device.gid}. "
            "It is meant for all users (0666):",
            f"  {facts.sudo}chmod 0666 /dev/fuse",
            "And to keep it so after a restart:",
            f'  echo \'KERNEL=="fuse", MODE="0666"\' | {facts.sudo}tee /etc/udev/rules.d/99-fuse.rules',
        )
    return _security_module("opening /dev/fuse", "fuse", facts)


def _fuse_mount(number: int, facts: Facts) -> Remedy:
    if number == errno.ENODEV:
        return _load_module("fuse", facts)
    if number in (errno.EPERM, errno.EACCES) and not facts.container and facts.seccomp != 2:
        return _security_module("mounting FUSE", "mount", facts)
    return ()


def _confined(number: int, facts: Facts) -> Remedy:
    if number == errno.ENOSYS:
        return (f"viewfs knows the system calls of x86_64 and aarch64; this is {os.uname().machine}.",)
    if number == errno.EINVAL:
        return ("This kernel was built without seccomp filters (CONFIG_SECCOMP_FILTER); boot one that has them.",)
    return ()


def _overlay(number: int, facts: Facts) -> Remedy:
    if number == errno.ENODEV:
        return _load_module("overlay", facts)
    if (0, 0) < facts.kernel < (5, 11):
        return (f"This is Linux {facts.release}; users may mount overlays since 5.11.",)
    if number in (errno.EPERM, errno.EACCES) and not facts.container and facts.seccomp != 2:
        return _security_module("mounting an overlay", "overlay|mount", facts)
    return ()


def _pid_namespace(number: int, facts: Facts) -> Remedy:
    if number == errno.ENOSPC:
        return _raise_limit("pid", facts.max_pid_namespaces, facts)
    if number != errno.EPERM:
        return ()
    why = "The kernel gives a new /proc only where all of the old one can be seen, and something covers parts of it"
    if facts.container:
        return (f"{why}: the container's masks.", *_start_container(facts, whole_proc=True))
    return (f"{why}. This shows what:", "  findmnt --submounts /proc")


_DIAGNOSES: dict[str, Callable[[int, Facts], Remedy]] = {
    "userns": _user_namespace,
    "idmap": _id_map_of,
    "mount": _first_mount,
    "root": _new_root,
    "device": _device,
    "fuse": _fuse_mount,
    "confine": _confined,
    "read": lambda _number, _facts: (),
    "overlay": _overlay,
    "pid": _pid_namespace,
}


def _set(setting: str, value: int, facts: Facts) -> Remedy:
    """Set a sysctl, now and after every start."""
    if not facts.initial_user_namespace or facts.container:
        return ("On the host, as root:", f"  sysctl -w {setting}={value}")
    return (
        f"  {facts.sudo}sysctl -w {setting}={value}",
        "And to keep it so after a restart:",
        f"  echo {setting}={value} | {facts.sudo}tee /etc/sysctl.d/99-viewfs.conf",
    )


def _raise_limit(kind: str, limit: int | None, facts: Facts) -> Remedy:
    setting = f"user.max_{kind}_namespaces"
    if kind == "user" and facts.max_mnt_namespaces == 0:
        setting, limit = "user.max_mnt_namespaces", 0
    if limit == 0 and not facts.initial_user_namespace:
        return (
            f"{setting} is 0 in the user namespace you are in (of a container or a sandbox).",
            "Whoever started that has to leave it at its default, or raise it there.",
        )
    if limit == 0:
        # RHEL 7 had it so, and the security profiles of later ones (DISA STIG) have.
        return (f"{setting} is 0: this machine has them switched off.", *_set(setting, 28633, facts))
    return (
        f"As many as {setting} allows ({'unknown' if limit is None else limit}) exist already, here or in an outer "
        "user namespace, or they are nested 32 deep. This lists yours:",
        f"  lsns --type {kind}",
    )


def _load_module(name: str, facts: Facts) -> Remedy:
    if facts.container or not facts.initial_user_namespace:
        return (f"The host's kernel has not loaded {name}. On the host, as root:", f"  modprobe {name}")
    return (
        f"The kernel module {name} is not loaded, or this kernel has none.",
        f"  {facts.sudo}modprobe {name}",
        "And to keep it so after a restart:",
        f"  echo {name} | {facts.sudo}tee /etc/modules-load.d/{name}.conf",
    )


def _lift_seccomp(facts: Facts) -> Remedy:
    if facts.container:
        return ("The container's seccomp filter forbids it.", *_start_container(facts))
    return (
        "A seccomp filter is on this process, from whatever started it: a sandbox, or a systemd unit with",
        "RestrictNamespaces= or SystemCallFilter=. Start viewfs without it.",
    )


def _start_container(facts: Facts, *, whole_proc: bool = False) -> Remedy:
    """How a container is started in which all of viewfs works."""
    docker = "  docker run --device /dev/fuse --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    podman = "  podman run --device /dev/fuse --security-opt seccomp=unconfined --security-opt label=disable"
    if whole_proc:
        docker, podman = f"{docker} --security-opt systempaths=unconfined", f"{podman} --security-opt unmask=ALL"
    if facts.container == "docker":
        return ("Start it so:", f"{docker} …")
    if facts.container == "podman":
        return ("Start it so:", f"{podman} …")
    if facts.container == "kubernetes":
        return (
            "In the pod's securityContext: seccompProfile and appArmorProfile of type Unconfined"
            + (", procMount Unmasked." if whole_proc else "."),
            "/dev/fuse comes from a device plugin; mounting it as a hostPath does not give the right to open it.",
        )
    if facts.container == "lxc":
        return (
            "Let it nest and give it the device. With Incus (and LXD, where the command is lxc):",
            "  incus config set NAME security.nesting=true",
            "  incus config device add NAME fuse unix-char path=/dev/fuse",
            "With Proxmox:",
            "  pct set ID --features nesting=1,fuse=1",
        )
    if facts.container == "systemd-nspawn":
        return ("Start it so:", f"  systemd-nspawn {_NSPAWN_DEVICE} …")
    return ("Start the container so, or as its program says the same:", f"{docker} …", f"{podman} …")


def _security_module(what: str, pattern: str, facts: Facts) -> Remedy:
    label = facts.apparmor_label
    confined = f" (AppArmor: {label})" if label and label != "unconfined" else ""
    return (
        f"A security module, AppArmor or SELinux, forbids {what}{confined}. The kernel's log names it:",
        f"  {facts.sudo}dmesg | grep -iE '(apparmor|avc).*({pattern})'",
    )


def _restricted_by_apparmor(facts: Facts) -> bool:
    """Ubuntu's restriction is on for this process. It spares root, and programs with a profile that says `userns`."""
    confined = facts.apparmor_label not in (None, "unconfined")
    return bool(facts.apparmor_restrict) and facts.uid != 0 and not confined


def apparmor_profile(program: str) -> Remedy:
    """A profile that takes nothing from `program` and gives it user namespaces (apparmor.d(5))."""
    path = re.sub(r'[\\*?\[\]{}^"@]', lambda special: f"\\{special[0]}", program)
    if path != program or re.search(r"[\s,#=()]", path):
        path = f'"{path}"'
    return (
        "abi <abi/4.0>,",
        "include <tunables/global>",
        "",
        f"profile viewfs {path} flags=(unconfined) {{",
        "  userns,",
        "  include if exists <local/viewfs>",
        "}",
    )


def _install_profile(facts: Facts) -> Remedy:
    where = "on the host " if facts.container else ""
    lines = [
        "AppArmor gives an unprivileged program no rights in a user namespace unless a profile of its own says so",
        f"(kernel.apparmor_restrict_unprivileged_userns is 1). Install this one {where}and start viewfs again:",
    ]
    if re.fullmatch(r"python[\d.]*", os.path.basename(facts.program)):
        lines.append("(It holds for every program of this interpreter; started as `viewfs`, a narrower one would do.)")
    return (
        *lines,
        f"  {facts.sudo}tee /etc/apparmor.d/viewfs >/dev/null <<'END'",
        *apparmor_profile(facts.program),
        "END",
        f"  {facts.sudo}apparmor_parser -r /etc/apparmor.d/viewfs",
    )


# -- the attempt

#: What is said of a step: its name, then "begin", "ok" or "failed", the detail, and the errno of a failure.
Report = Callable[[str, str, str, int], None]

_GREETING = b"Hello from viewfs!\n"
#: A mount point that no machine has: making it needs the view's own root.
_PLACE = "/viewfs-doctor"


class _StepFailed(Exception):
    """A step that views can't do without failed, and was reported."""


def _attempt(report: Report) -> None:
    """Open a view and use it, as a session does. Runs in a child that ends afterwards."""

    @contextmanager
    def step(name: str) -> Iterator[list[str]]:
        """Report how the body went. What it adds to the list is the detail of its success."""
        report(name, "begin", "", 0)
        detail: list[str] = []
        try:
            yield detail
        except (OSError, ViewfsError) as error:
            report(name, "failed", *_explain(name, error))
            if STEPS[name].required:
                raise _StepFailed from error
        else:
            report(name, "ok", "".join(detail), 0)

    _enter_user_namespace(step)
    with step("mount") as detail:
        mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
        os.close(detached_tmpfs("viewfs-doctor", {"mode": "755"}, MountAttr.RDONLY))
        detail.append("Linux " + ".".join(os.uname().release.split(".")[:2]))
    with step("root"):
        build_root(fresh_proc=False)
        with open("/proc/self/mountinfo", "rb") as table:
            plan = plan_mount_point(_PLACE, parse_mountinfo(table.read()))
        live = open_namespace("mnt")
        make_mount_point(plan, is_directory=True, live_namespace=live)
        os.close(live)
    _serve_a_file(step)
    with step("overlay"):
        _try_overlay()
    with step("pid"):
        unshare(CloneFlags.NEWPID)
        _wait_for(_fork(_mount_own_proc, parent_inside=0))


StepContext = Callable[[str], contextlib.AbstractContextManager[list[str]]]


def _explain(name: str, error: OSError | ViewfsError) -> tuple[str, int]:
    """The line that says what failed, and its errno."""
    if isinstance(error, OSError):
        number, cannot = error.errno or 0, STEPS[name].cannot
        reason = (error.strerror or str(error)).replace(os.strerror(number), os.strerror(number).lower())
        path = error.filename
        return f"{cannot}: {reason}" + (f" ({path})" if path and str(path) not in cannot else ""), number
    cause = error.__cause__ or error.__context__
    return error.message, (cause.errno or 0) if isinstance(cause, OSError) else 0


def _enter_user_namespace(step: StepContext) -> None:
    """One call, as a session makes it, but two steps: which of them it was tells one kind of machine from another."""
    identity = IdentityMap.of_caller(as_root=False)
    parent = os.getppid()
    refused: MachineError | None = None
    with step("userns"):
        try:
            unshare_user_namespace(identity, CloneFlags.NEWNS)
        except MachineError as error:
            if _explain("userns", error)[0].startswith(STEPS["userns"].cannot):
                raise
            refused = error
    with step("idmap") as detail:
        if refused is not None:
            raise refused
        die_with_parent(parent)  # as for any change of credentials
        detail.append(f"uid {identity.inside_uid}, gid {identity.inside_gid}")


def _serve_a_file(step: StepContext) -> None:
    with step("device") as detail:
        fuse = open_fuse_device()
        if _device_number(os.fstat(fuse)) != FUSE_DEVICE:
            raise OSError(errno.ENXIO, "it is not the FUSE device", "/dev/fuse")
        detail.append(f"mode {stat.S_IMODE(os.fstat(fuse).st_mode):04o}")
    file_system = NodeFileSystem(Directory({"hello": ComputedFile(lambda: _GREETING)}))
    with step("fuse"):
        root_mode = file_system.getattr(file_system.root).mode
        mount_fd = create_fuse_mount(
            fuse,
            root_mode=root_mode,
            source="viewfs-doctor",
            subtype="viewfs.doctor",
            writable=False,
            uid=os.getuid(),
            gid=os.getgid(),
        )
    with step("confine"):

        def shut_in() -> None:
            os.close(mount_fd)
            unshare(CloneFlags.NEWNS)
            confine(Confinement.SEALED)

        counters = Counters.create()
        server = _fork(shut_in, then=lambda: serve(file_system, fuse, counters))
        # The server alone holds the connection now: its death ends that, and with it any wait for an answer.
        os.close(fuse)
    with step("read"):
        place = os.open(_PLACE, os.O_PATH | os.O_CLOEXEC)
        attach(mount_fd, place)
        os.close(place)
        os.close(mount_fd)
        with open(f"{_PLACE}/hello", "rb") as file:
            content = file.read()
        if content != _GREETING or os.listdir(_PLACE) != ["hello"]:
            raise OSError(errno.EIO, "it says something else", f"{_PLACE}/hello")
        umount2(_PLACE)
        _wait_for(server)


def _try_overlay() -> None:
    """An overlay on a tmpfs, and a file of its lower layer changed in it."""
    mount("viewfs-doctor", _PLACE, "tmpfs", MountFlags.NOSUID | MountFlags.NODEV, "mode=700")
    lower, upper, work, merged = (f"{_PLACE}/{name}" for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        os.mkdir(directory)
    with open(f"{lower}/file", "w") as file:
        file.write("below")
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr"
    mount("overlay", merged, "overlay", MountFlags.NOSUID | MountFlags.NODEV, options)
    with open(f"{merged}/file", "a") as file:
        file.write(", above")
    if (_text(f"{lower}/file"), _text(f"{merged}/file")) != ("below", "below, above"):
        raise OSError(errno.EIO, "a change did not go to the upper layer", f"{merged}/file")
    umount2(_PLACE, UmountFlags.DETACH)


def _mount_own_proc() -> None:
    flags = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
    mount("proc", _PLACE, "proc", flags)
    if os.readlink(f"{_PLACE}/self") != "1":
        raise OSError(errno.EIO, "it shows other processes", _PLACE)


def _fork(work: Callable[[], None], then: Callable[[], None] | None = None, parent_inside: int | None = None) -> int:
    """Fork a process that does `work`, then `then`; its pid, once `work` is done. Raises the OSError of `work`.

    `parent_inside` is what getppid(2) gives there, if not this process's number.
    """
    parent = os.getpid() if parent_inside is None else parent_inside
    answer, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(work, then, answering, parent)
    os.close(answering)
    with open(answer, "rb") as pipe:
        said = pipe.read()
    if said == b"ok":
        return pid
    _pid, status = os.waitpid(pid, 0)
    if not said:
        raise OSError(errno.ECHILD, f"the process ended unexpectedly (status {os.waitstatus_to_exitcode(status)})")
    number, reason, path = json.loads(said)
    raise OSError(number, reason, path)


def _become(work: Callable[[], None], then: Callable[[], None] | None, answering: int, parent: int) -> NoReturn:
    try:
        die_with_parent(parent)
        try:
            work()
        except OSError as error:
            os.write(answering, json.dumps([error.errno, error.strerror, error.filename]).encode())
            os._exit(1)
        os.write(answering, b"ok")
        os.close(answering)
        if then is not None:
            then()
        os._exit(0)
    finally:
        os._exit(1)


def _wait_for(pid: int) -> None:
    _pid, status = os.waitpid(pid, 0)
    if status != 0:
        code = os.waitstatus_to_exitcode(status)
        raise OSError(errno.ECHILD, f"the process that served it ended with status {code}")


# -- from outside


def examine(
    facts: Facts | None = None, *, attempt: Callable[[Report], None] = _attempt, deadline: float = DEADLINE
) -> list[Step]:
    """Try it all. Nothing of it is left afterwards: no process, mount or file.

    `deadline` is in seconds, for each step; `attempt` is what the child does.
    """
    facts = facts or Facts.read()
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _become_attempt(attempt, writing, parent)
    os.close(writing)
    try:
        with contextlib.suppress(OSError):  # it may have done so itself, and ended
            os.setpgid(child, child)
        messages, hung = _listen(reading, deadline)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # whoever ignores SIGCHLD has the kernel do it
            os.waitpid(child, 0)
        _wait_for_end(reading)
        os.close(reading)
    return _conclude(
        messages, f"gave no answer within {deadline:g} s" if hung else "ended without an answer", hung, facts
    )


def _become_attempt(attempt: Callable[[Report], None], writing: int, parent: int) -> NoReturn:
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        die_with_parent(parent)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

        def report(*message: Any) -> None:
            os.write(writing, json.dumps(message).encode() + b"\n")

        attempt(report)
        status = 0
    except _StepFailed:
        status = 0
    except Exception as error:
        os.write(writing, json.dumps(["", "broken", f"{type(error).__name__}: {error}", 0]).encode() + b"\n")
    finally:
        os._exit(status)


Message = tuple[str, str, str, int]


def _listen(reading: int, deadline: float) -> tuple[list[Message], bool]:
    """All that is said until the end or until one step takes too long, and whether it did."""
    said = b""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    hung = False
    until = time.monotonic() + deadline
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            hung = True
            break
        more = os.read(reading, 65536)
        if not more:
            break
        said += more
        until = time.monotonic() + deadline
    return [(str(m[0]), str(m[1]), str(m[2]), int(m[3])) for m in map(json.loads, said.splitlines())], hung


def _wait_for_end(reading: int, seconds: float = 5.0) -> None:
    """Until every process that has the other end is gone. All were killed; the kernel may take a moment for it."""
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    until = time.monotonic() + seconds
    while poll.poll(max(0.0, until - time.monotonic()) * 1000) and os.read(reading, 65536):
        pass


def _conclude(messages: list[Message], silence: str, hung: bool, facts: Facts) -> list[Step]:
    """The steps, in order, from what was said of them; `silence` is said of one that began and did not end."""
    begun = {name for name, what, _detail, _number in messages if what == "begin"}
    ended = {name: (what, detail, number) for name, what, detail, number in messages if what in ("ok", "failed")}
    broken = next((detail for _name, what, detail, _number in messages if what == "broken"), silence)
    steps = []
    for name, kind in STEPS.items():
        if name not in begun:
            steps.append(Step(name, kind.title, "skipped", "not tried"))
            continue
        unanswered = ("failed", f"{kind.cannot}: {broken}", errno.ETIMEDOUT if hung else 0)
        what, detail, number = ended.get(name, unanswered)
        if what == "ok":
            steps.append(Step(name, kind.title, "ok", detail))
            continue
        remedy = diagnose(name, number, facts)
        steps.append(Step(name, kind.title, "failed" if kind.required else "warning", detail, remedy))
    return steps
