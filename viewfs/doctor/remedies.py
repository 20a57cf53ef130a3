"""What to do about a step that failed: decided by the step, its errno and the facts, and nothing else."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable

from viewfs.doctor.facts import FUSE_DEVICE, Facts

__all__ = ["Remedy", "apparmor_profile", "diagnose"]

#: fsopen(2) and the like are of 5.2, mount_setattr(2) of 5.12.
OLDEST_KERNEL = (5, 12)

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
    """How to set a sysctl, now and after every start."""
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
        # RHEL 7 had this default, and security profiles of later releases set it (DISA STIG).
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
    """How to start a container in which all of viewfs works."""
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
