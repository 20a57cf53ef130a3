"""What `viewfs doctor` advises for what machines have been seen to refuse, and that it survives what it tries."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from viewfs.doctor import STEPS, Facts, FuseDevice, Report, apparmor_profile, diagnose, examine, works
from viewfs.doctor import facts as doctor_facts

MACHINE = Facts(
    release="6.8.0-31-generic",
    uid=1000,
    max_user_namespaces=60000,
    max_mnt_namespaces=60000,
    max_pid_namespaces=60000,
    apparmor_label="unconfined",
    seccomp=0,
    fuse_device=FuseDevice(),
    fuse_in_kernel=True,
    overlay_in_kernel=True,
    program="/usr/bin/viewfs",
)
UBUNTU = replace(MACHINE, apparmor_restrict=1)
DOCKER = replace(MACHINE, container="docker", seccomp=2, uid=0, apparmor_label="docker-default (enforce)")


def advice(step: str, number: int, facts: Facts) -> str:
    return "\n".join(diagnose(step, number, facts))


def commands(step: str, number: int, facts: Facts) -> list[str]:
    return [line.strip() for line in diagnose(step, number, facts) if line.startswith("  ")]


def test_debian_setting_that_forbids_user_namespaces() -> None:
    facts = replace(MACHINE, unprivileged_userns_clone=0)
    assert "sudo sysctl -w kernel.unprivileged_userns_clone=1" in commands("userns", errno.EPERM, facts)


def test_debian_setting_binds_root_of_a_container_too() -> None:
    facts = replace(MACHINE, unprivileged_userns_clone=0, uid=0, initial_user_namespace=False)
    assert commands("userns", errno.EPERM, facts) == ["sysctl -w kernel.unprivileged_userns_clone=1"]
    assert "On the host" in advice("userns", errno.EPERM, facts)


def test_debian_setting_is_not_blamed_when_it_allows() -> None:
    facts = replace(MACHINE, unprivileged_userns_clone=1)
    assert "unprivileged_userns_clone" not in advice("userns", errno.EPERM, facts)


def test_no_user_namespaces_as_hardened_rhel_has_it() -> None:
    facts = replace(MACHINE, max_user_namespaces=0)
    assert commands("userns", errno.ENOSPC, facts) == [
        "sudo sysctl -w user.max_user_namespaces=28633",
        "echo user.max_user_namespaces=28633 | sudo tee /etc/sysctl.d/99-viewfs.conf",
    ]


def test_root_is_not_told_to_use_sudo() -> None:
    facts = replace(MACHINE, max_user_namespaces=0, uid=0)
    assert "sudo" not in advice("userns", errno.ENOSPC, facts)


def test_limit_of_an_inner_namespace_is_not_the_users_to_set() -> None:
    facts = replace(MACHINE, max_user_namespaces=0, initial_user_namespace=False)
    assert commands("userns", errno.ENOSPC, facts) == []
    assert "in the user namespace you are in" in advice("userns", errno.ENOSPC, facts)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EUSERS])
def test_limit_that_is_used_up(number: int) -> None:
    assert "lsns --type user" in commands("userns", number, MACHINE)
    assert "60000" in advice("userns", number, MACHINE)


def test_no_mount_namespaces() -> None:
    facts = replace(MACHINE, max_mnt_namespaces=0)
    assert "sudo sysctl -w user.max_mnt_namespaces=28633" in commands("userns", errno.ENOSPC, facts)


@pytest.mark.parametrize("step", ["userns", "idmap", "mount"])
@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_ubuntu_gets_a_profile_that_can_be_pasted(step: str, number: int) -> None:
    lines = diagnose(step, number, UBUNTU)
    start = next(n for n, line in enumerate(lines) if line.endswith("<<'END'"))
    end = lines.index("END")
    assert lines[start].strip() == "sudo tee /etc/apparmor.d/viewfs >/dev/null <<'END'"
    assert lines[start + 1 : end] == apparmor_profile("/usr/bin/viewfs")
    assert lines[end + 1].strip() == "sudo apparmor_parser -r /etc/apparmor.d/viewfs"


def test_apparmor_profile_is_complete() -> None:
    assert apparmor_profile("/usr/bin/viewfs") == (
        "abi <abi/4.0>,",
        "include <tunables/global>",
        "",
        "profile viewfs /usr/bin/viewfs flags=(unconfined) {",
        "  userns,",
        "  include if exists <local/viewfs>",
        "}",
    )


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("/home/a b/bin/viewfs", '"/home/a b/bin/viewfs"'),
        ("/opt/{x}/view[fs]*", r'"/opt/\{x\}/view\[fs\]\*"'),
        ("/opt/viewfs-1.0/bin/viewfs", "/opt/viewfs-1.0/bin/viewfs"),
    ],
)
def test_apparmor_profile_names_odd_paths(path: str, written: str) -> None:
    assert f"profile viewfs {written} flags=(unconfined) {{" in apparmor_profile(path)


def test_profile_for_an_interpreter_says_how_far_it_reaches() -> None:
    assert "every program of this interpreter" in advice(
        "idmap", errno.EPERM, replace(UBUNTU, program="/usr/bin/python3.12")
    )
    assert "every program of this interpreter" not in advice("idmap", errno.EPERM, UBUNTU)


def test_ubuntu_with_the_profile_installed_is_not_told_to_install_it() -> None:
    facts = replace(UBUNTU, apparmor_label="viewfs (unconfined)")
    assert "apparmor_parser" not in advice("idmap", errno.EPERM, facts)
    assert "viewfs (unconfined)" in advice("idmap", errno.EPERM, facts)


def test_chroot() -> None:
    assert "chroot" in advice("userns", errno.EPERM, replace(MACHINE, chrooted=True))
    assert "systemd-nspawn" in advice("userns", errno.EPERM, replace(MACHINE, chrooted=True))


def test_user_without_a_mapping() -> None:
    assert "uid_map" in advice("userns", errno.EPERM, replace(MACHINE, ids_mapped=False))


def test_kernel_without_user_namespaces() -> None:
    assert "CONFIG_USER_NS" in advice("userns", errno.EINVAL, replace(MACHINE, has_user_namespaces=False))


def test_docker_forbids_unshare() -> None:
    text = advice("userns", errno.EPERM, DOCKER)
    assert "seccomp filter" in text
    assert "docker run --device /dev/fuse --security-opt seccomp=unconfined --security-opt apparmor=unconfined" in text


def test_docker_forbids_mount() -> None:
    facts = replace(DOCKER, apparmor_restrict=1)
    text = advice("mount", errno.EACCES, facts)
    assert "AppArmor" in text
    assert "--security-opt apparmor=unconfined" in text
    assert "apparmor_parser" not in text


def test_seccomp_filter_outside_a_container() -> None:
    text = advice("userns", errno.EPERM, replace(MACHINE, seccomp=2))
    assert "RestrictNamespaces=" in text
    assert "docker" not in text


@pytest.mark.parametrize(
    ("container", "said"),
    [
        ("docker", "docker run --device /dev/fuse"),
        ("podman", "podman run --device /dev/fuse"),
        ("lxc", "incus config device add NAME fuse unix-char path=/dev/fuse"),
        ("systemd-nspawn", "systemd-nspawn --bind=/dev/fuse --property='DeviceAllow=/dev/fuse rw'"),
        ("kubernetes", "device plugin"),
        ("unknown", "podman run --device /dev/fuse"),
    ],
)
@pytest.mark.parametrize(("number", "device"), [(errno.ENOENT, None), (errno.EPERM, FuseDevice())])
def test_container_without_the_device(container: str, said: str, number: int, device: FuseDevice | None) -> None:
    assert said in advice("device", number, replace(MACHINE, container=container, fuse_device=device))


def test_device_missing_because_the_module_is() -> None:
    facts = replace(MACHINE, fuse_device=None, fuse_in_kernel=False)
    assert "sudo modprobe fuse" in commands("device", errno.ENOENT, facts)


def test_device_node_missing() -> None:
    facts = replace(MACHINE, fuse_device=None)
    assert commands("device", errno.ENOENT, facts) == ["sudo mknod -m 666 /dev/fuse c 10 229"]


@pytest.mark.parametrize("mode", [0o600, 0o660, 0])
def test_device_mode(mode: int) -> None:
    facts = replace(MACHINE, fuse_device=FuseDevice(mode=mode, gid=104))
    assert "sudo chmod 0666 /dev/fuse" in commands("device", errno.EACCES, facts)
    assert f"{mode:04o} and belongs to uid 0, gid 104" in advice("device", errno.EACCES, facts)


def test_device_that_is_not_it() -> None:
    facts = replace(MACHINE, fuse_device=FuseDevice(mode=0o600, is_fuse=False))
    assert "chmod" not in advice("device", errno.EACCES, facts)
    assert "mknod -m 666 /dev/fuse c 10 229" in advice("device", errno.EACCES, facts)


def test_device_forbidden_by_its_cgroup() -> None:
    text = advice("device", errno.EPERM, MACHINE)
    assert "DeviceAllow=/dev/fuse rw" in text
    assert "chmod" not in text


def test_device_on_a_file_system_without_devices() -> None:
    assert "nodev" in advice("device", errno.EACCES, replace(MACHINE, fuse_device=FuseDevice(nodev=True)))


def test_device_forbidden_by_a_security_module() -> None:
    assert "dmesg" in advice("device", errno.EACCES, MACHINE)


def test_kernel_that_is_too_old() -> None:
    text = advice("mount", errno.ENOSYS, replace(MACHINE, release="4.18.0-553.el8"))
    assert "4.18.0-553.el8" in text
    assert "5.12" in text


def test_proc_that_is_masked() -> None:
    assert "systempaths=unconfined" in advice("pid", errno.EPERM, DOCKER)
    assert "unmask=ALL" in advice("pid", errno.EPERM, replace(DOCKER, container="podman"))
    assert commands("pid", errno.EPERM, MACHINE) == ["findmnt --submounts /proc"]


def test_overlay_missing() -> None:
    assert "sudo modprobe overlay" in commands("overlay", errno.ENODEV, MACHINE)
    assert "5.11" in advice("overlay", errno.EPERM, replace(MACHINE, release="5.4.0"))


def test_root_that_may_not_be_mapped() -> None:
    text = advice("idmap", errno.EPERM, replace(MACHINE, uid=0, may_map_root=False))
    assert "--cap-add SETFCAP" in text


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("facts", [Facts(), MACHINE, UBUNTU, DOCKER, replace(DOCKER, container="unknown")])
def test_there_is_always_something_to_do(step: str, facts: Facts) -> None:
    for number in (0, *errno.errorcode):
        lines = diagnose(step, number, facts)
        assert lines
        assert all(line.isprintable() for line in lines)


def test_facts_can_be_read_anywhere() -> None:
    facts = Facts.read()
    assert facts.uid == os.geteuid()
    assert facts.kernel > (4, 0)
    assert facts.program


def test_a_step_that_hangs_is_given_up_and_ended() -> None:
    def attempt(report: Report) -> None:
        report("userns", "begin", "", 0)
        bystander = os.fork()
        if bystander == 0:
            signal.pause()
        report("userns", "ok", str(bystander), 0)
        report("idmap", "begin", "", 0)
        signal.pause()

    steps = examine(MACHINE, attempt=attempt, deadline=1)
    assert [step.state for step in steps[:3]] == ["ok", "failed", "skipped"]
    assert steps[1].detail == "cannot write the id map: gave no answer within 1 s"
    assert steps[1].remedy
    assert not works(steps)
    assert ends(int(steps[0].detail))


def ends(pid: int) -> bool:
    """Is the process gone soon? (A signal to a group reaches each in its own time.)"""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 10)[0])
    finally:
        os.close(process)


def test_a_child_that_dies_is_a_failed_step() -> None:
    def attempt(report: Report) -> None:
        report("userns", "begin", "", 0)
        os.kill(os.getpid(), signal.SIGKILL)

    steps = examine(MACHINE, attempt=attempt)
    assert (steps[0].state, steps[0].detail) == ("failed", "cannot create a user namespace: ended without an answer")
    assert {step.state for step in steps[1:]} == {"skipped"}


def test_a_defect_before_the_first_step_is_told_too() -> None:
    def attempt(report: Report) -> None:
        raise KeyError("surprise")

    steps = examine(MACHINE, attempt=attempt)
    assert steps[0].state == "failed" and "surprise" in steps[0].detail
    assert {step.state for step in steps[1:]} == {"skipped"} and not works(steps)


def test_a_defect_is_told_as_a_failed_step() -> None:
    def attempt(report: Report) -> None:
        report("userns", "begin", "", 0)
        raise KeyError("surprise")

    steps = examine(MACHINE, attempt=attempt)
    assert steps[0].state == "failed"
    assert "KeyError: 'surprise'" in steps[0].detail


def test_what_is_optional_does_not_fail() -> None:
    def attempt(report: Report) -> None:
        for name in STEPS:
            report(name, "begin", "", 0)
            if name == "overlay":
                report(name, "failed", "cannot mount an overlay: no such device", errno.ENODEV)
            else:
                report(name, "ok", "", 0)

    steps = {step.name: step for step in examine(MACHINE, attempt=attempt)}
    assert steps["overlay"].state == "warning"
    assert "  sudo modprobe overlay" in steps["overlay"].remedy
    assert works(list(steps.values()))


def test_starting_it_does_not_load_the_event_loop() -> None:
    script = "import sys, viewfs.cli.doctor; print('trio' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("default", "most", "seconds"),
    [(None, None, 0), (0, 0, 0), (30, 0, 30), (0, 40, 40), (60, 40, 40), (30, 40, 30), (1, 0, 15)],
)
def test_how_long_the_kernel_lets_a_server_take(
    monkeypatch: pytest.MonkeyPatch, default: int | None, most: int | None, seconds: int
) -> None:
    values = {"/proc/sys/fs/fuse/default_request_timeout": default, "/proc/sys/fs/fuse/max_request_timeout": most}
    monkeypatch.setattr(doctor_facts, "_number", values.__getitem__)
    assert doctor_facts.request_timeout() == seconds
