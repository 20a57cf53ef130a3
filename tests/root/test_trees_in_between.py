"""Trees of an ordinary user that are not theirs alone: groups without a number, mounts of others below."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kernel.cow.test_interrupted_commit import in_a_child
from tests.root.test_lower_file_systems import Account
from viewfs.linux.mount import MountFlags, mount
from viewfs.linux.namespaces import CloneFlags, unshare

pytestmark = [
    pytest.mark.needs("setpriv"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give groups, and mount for others"),
]
GROUP = 54321


class Member(Account):
    """The account as a member of a group besides its own, which a view has no number for."""

    @property
    def ids(self) -> list[str]:
        return [f"--reuid={self.entry.pw_uid}", f"--regid={self.entry.pw_gid}", f"--groups={GROUP}"]

    def run(self, *arguments: str | Path, cwd: Path | str = "/") -> tuple[int, str]:
        """`viewfs` with `arguments`: exit code, all that it printed."""
        command = ["setpriv", *self.ids, sys.executable, "-B", "-m", "viewfs", *map(str, arguments)]
        done = subprocess.run(
            command, stdout=-1, stderr=-2, text=True, env=self.environment, cwd=cwd, timeout=120, check=False
        )
        return done.returncode, done.stdout


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def member(place: Path) -> Member:
    account = Member(place)
    account.environment["XDG_STATE_HOME"] = str(account.own(place / "state"))
    return account


def make_tree(account: Account, place: Path) -> Path:
    tree = account.own(place / "tree")
    for name in ("a/b/c/file", "a/b/c/other", "a/text", "script", "gone/file"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{name}\n")
    for path in (tree, *tree.rglob("*")):
        os.chown(path, account.entry.pw_uid, account.entry.pw_gid)
    return tree


def give_all(tree: Path) -> None:
    """As a web server's tree: everything is the group's, and what is made becomes so."""
    for path in (tree, *tree.rglob("*")):
        os.chown(path, -1, GROUP)
        path.chmod(0o2775 if path.is_dir() else 0o664)


def give_one_deep_below(tree: Path) -> None:
    os.chown(tree / "a/b/c/file", -1, GROUP)


def give_a_directory(tree: Path) -> None:
    os.chown(tree / "a/b/c", -1, GROUP)
    (tree / "a/b/c").chmod(0o2775)


GIVEN: dict[str, Callable[[Path], None]] = {
    "all of it": give_all, "one file deep below": give_one_deep_below, "a directory": give_a_directory,
}  # fmt: skip
WORK = """
    cd {tree}; echo more >> a/b/c/file; chmod 600 a/b/c/other; echo x > a/b/c/new; mkdir a/b/c/made
    echo y > a/b/c/made/y; mv a/text a/moved; rm -r gone; touch -d @1500000000 script
    ln a/b/c/file a/b/c/link; cat a/b/c/file"""


@pytest.mark.parametrize("given", GIVEN)
def test_a_group_without_a_number(member: Member, place: Path, given: str) -> None:
    """Everything can be changed in the view, and is its group's still where it is kept."""
    tree = make_tree(member, place)
    GIVEN[given](tree)
    before = {path.relative_to(tree): path.stat().st_gid for path in tree.rglob("*")}
    assert GROUP in before.values() or tree.stat().st_gid == GROUP
    code, out = member.run("run", "--name", "n", "--cow", tree, "--", "bash", "-euc", WORK.format(tree=tree))
    assert code == 0 and out.endswith("a/b/c/file\nmore\n") and "Value too large" not in out, out
    assert (tree / "a/b/c/file").read_text() == "a/b/c/file\n"
    code, out = member.run("commit", "--session", "n")
    named = {line.split(": ")[2] for line in out.splitlines() if "not committed" in line}
    assert bool(named) == (code != 0), out
    after = {path.relative_to(tree): path.stat().st_gid for path in tree.rglob("*")}
    for path, group in before.items():
        if path in after:
            assert after[path] == group or str(tree / path) in named, f"{path} is of group {after[path]} now"
    assert not named, out
    assert (tree / "a/b/c/file").read_text() == "a/b/c/file\nmore\n" and not (tree / "gone").exists()
    assert (tree / "a/b/c/other").stat().st_mode & 0o777 == 0o600
    assert (tree / "a/moved").read_text() == "a/text\n" and (tree / "script").stat().st_mtime == 1500000000
    assert stat.S_IMODE((tree / "a/b/c").stat().st_mode) == (0o755 if given == "one file deep below" else 0o2775)
    if given != "one file deep below":  # in a set-group-id directory what is made is its group's
        assert (tree / "a/b/c/new").stat().st_gid == GROUP


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_discarded_is_its_groups(member: Member, place: Path, given: str) -> None:
    tree = make_tree(member, place)
    GIVEN[given](tree)
    script = f"{WORK.format(tree=tree)}; viewfs discard > /dev/null; viewfs diff; find . -type f | sort; cat a/b/c/file"
    code, out = member.run("run", "--name", "n", "--cow", tree, "--", "bash", "-euc", script)
    assert code == 0, out
    assert out.endswith("./a/b/c/file\n./a/b/c/other\n./a/text\n./gone/file\n./script\na/b/c/file\n"), out
    assert member.run("commit", "--session", "n")[0] in (0, 4)
    assert (tree / "a/b/c/file").stat().st_gid == (before := GROUP if given != "a directory" else member.entry.pw_gid)
    assert before in (GROUP, member.entry.pw_gid)


def tmpfs(where: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", where], check=True)


def behind_a_closed_directory(place: Path) -> tuple[Path, list[int]]:
    """As below /var/lib/docker."""
    (place / "top/closed/inner").mkdir(parents=True)
    tmpfs(place / "top/closed/inner")
    (place / "top/closed").chmod(0o710)
    return place / "top/closed/inner", []


def of_a_dead_server(place: Path, *, others: bool = True) -> tuple[Path, list[int]]:
    """A FUSE mount whose server has gone away: ENOTCONN to everybody."""
    there, fds = of_another_user(place, others=others)
    os.close(fds.pop())
    return there, fds


def of_another_user(place: Path, *, others: bool = False) -> tuple[Path, list[int]]:
    """A FUSE mount that root alone may look at."""
    there = place / "top/fuse"
    there.mkdir()
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0" + (",allow_other" if others else "")
    mount("other", str(there), "fuse", MountFlags.NOSUID | MountFlags.NODEV, options)
    return there, [fd]


def of_exfat_fuse_that_was_killed(place: Path) -> tuple[Path, list[int]]:
    image, there = place / "exfat", place / "top/exfat"
    there.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    device = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        subprocess.run(["mount.exfat-fuse", device, there], check=True, capture_output=True)
        (server,) = (
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and command_of(entry)[:1] == ["mount.exfat-fuse"] and device in command_of(entry)
        )
        os.kill(server, signal.SIGKILL)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)  # it goes once nothing has it
    return there, []


def command_of(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


MOUNTS: dict[str, Callable[[Path], tuple[Path, list[int]]]] = {
    "behind a closed directory": behind_a_closed_directory,
    "of a dead server": of_a_dead_server,
    "of a dead server that was for one": lambda place: of_a_dead_server(place, others=False),
    "of another user": of_another_user,
    "of exfat-fuse, killed": of_exfat_fuse_that_was_killed,
}


@pytest.mark.parametrize("whole", [False, True], ids=["DIR", "/"])
@pytest.mark.parametrize("kind", MOUNTS)
def test_mounts_that_one_can_not_look_at(member: Member, place: Path, kind: str, whole: bool) -> None:
    """One of them does not keep the rest from being copy-on-write; it is named, and stays as it is."""
    if "exfat" in kind and not (os.path.exists("/usr/sbin/mount.exfat-fuse") and os.path.exists("/dev/loop-control")):
        pytest.skip("there is no exfat-fuse, or no loop device")
    top = member.own(place / "top")
    os.chmod(top, 0o755)
    member("sh", "-c", "mkdir before below; echo one > before/text; echo one > text", cwd=top)

    def work() -> None:
        unshare(CloneFlags.NEWNS)
        mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
        tmpfs(top / "below")
        os.chown(top / "below", member.entry.pw_uid, member.entry.pw_gid)
        there, fds = MOUNTS[kind](place)
        refused = subprocess.run(["setpriv", *member.ids, "ls", there], capture_output=True, text=True)
        assert refused.returncode != 0, "it can be looked at after all"
        script = f"cd {top}; echo two >> before/text; rm text; echo new > below/new; cat before/text below/new"
        code, out = member.run("run", "--name", "n", "--cow", "/" if whole else top, "--", "bash", "-euc", script)
        assert code == 0 and out.endswith("one\ntwo\nnew\n"), out
        assert str(there) in out, f"it is named: {out}"
        assert (top / "before/text").read_text() == "one\n" and not (top / "below/new").exists()
        code, out = member.run("diff", "--session", "n", "--name-only")
        assert out.splitlines()[-3:] == [f"{top}/before/text", f"{top}/text", f"{top}/below/new"] or {
            f"{top}/before/text", f"{top}/text", f"{top}/below/new"
        } <= set(out.splitlines()), out  # fmt: skip
        code, out = member.run("commit", "--session", "n")
        assert code == 0, out
        assert (top / "before/text").read_text() == "one\ntwo\n" and (top / "below/new").read_text() == "new\n"
        for fd in fds:
            os.close(fd)

    assert in_a_child(work) == 0


@pytest.mark.parametrize("options", [("--as-root",), ("--as-root", "--ids=one"), ()])
def test_a_directory_that_one_may_not_enter(member: Member, place: Path, options: tuple[str, ...]) -> None:
    """What a view makes there is a change as any other: it is told, can be thrown away, and hinders nothing else."""
    tree = make_tree(member, place)
    (tree / "secret").mkdir(mode=0o700)
    (tree / "secret/kept").write_text("kept\n")
    script = (
        f"cd {tree}; echo more >> a/text; mkdir -p secret/made && echo a > secret/made/file && echo b > secret/kept"
    )
    code, out = member.run("run", "--name", "n", *options, "--cow", tree, "--", "bash", "-c", script)
    written = code == 0
    code, out = member.run("diff", "--session", "n", "--name-only")
    made = [f"{tree}/secret/{name}" for name in ("kept", "made", "made/file")] if written else []
    assert code == 0 and [line for line in out.splitlines() if line.startswith("/")] == [f"{tree}/a/text", *made], out
    assert written or "--as-root" not in options
    code, out = member.run("commit", "--session", "n")
    assert code == int(written) and (tree / "a/text").read_text().endswith("more\n")
    assert all(f"not committed: {path}: permission denied" in out for path in made[:2]), out
    code, out = member.run("discard", "--session", "n")
    assert code == (0 if written else 4) and (tree / "secret/kept").read_text() == "kept\n"
    assert sorted(path.name for path in (tree / "secret").iterdir()) == ["kept"]
    assert not (place / "state/viewfs/n").exists()
