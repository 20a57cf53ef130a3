"""A named session survives a power cut: what reached the disks is recorded, and looked at after a cut at each moment.

`VIEWFS_SOAK_POINTS=all` looks at every moment, a number at so many of each scenario; `VIEWFS_SOAK_SEED` chooses others.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REQUIRED
from tests.kernel.cow.test_interrupted_commit import in_a_child
from tests.root.power_cut.promises import ABSENT, ANYTHING, describe_file, directory, regular
from tests.root.power_cut.replay import choose
from tests.root.power_cut.scene import NAME, Scene, Session
from viewfs.linux.mount import MountFlags, mount
from viewfs.linux.namespaces import CloneFlags, unshare

pytestmark = [
    pytest.mark.needs("setpriv", "mke2fs"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount these"),
]
POINTS = os.environ.get("VIEWFS_SOAK_POINTS", "10")
SEED = int(os.environ.get("VIEWFS_SOAK_SEED", "1"))

BIG = b"".join(b"line %06d\n" % number for number in range(25_000))
MEDIUM = BIG[: 90 << 10]
TAIL = b"the end\n"
#: ext4 may know the new size before it has what was appended.
NOT_YET = bytes(len(TAIL))
#: What is in the tree before.
FILES = {
    "appended": BIG, "truncated": MEDIUM, "moved": MEDIUM, "script": MEDIUM, "marked": MEDIUM, "text": b"one\n" * 9000,
    "gone": b"deleted\n", "at-once": MEDIUM, "linked": MEDIUM, "below/file": MEDIUM, "below/deep/file": MEDIUM,
    "kind/file": b"in a directory\n",
}  # fmt: skip
DIRECTORIES: tuple[str, ...] = ("below", "below/deep", "kind")
#: How many names come and go.
NAMES = 3
for _number in range(NAMES):
    FILES |= {f"d{_number}/file": b"old\n", f"f{_number}": b"old\n", f"r{_number}": b"content"}
DIRECTORIES += tuple(f"d{number}" for number in range(NAMES))


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="viewfs-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def missing() -> str | None:
    """What this machine does not have."""
    if "ext4" not in Path("/proc/filesystems").read_text().split():
        return "this kernel has no ext4"
    if not os.path.exists("/dev/loop-control"):
        return "this machine has no loop devices"
    return None if os.path.exists("/dev/fuse") else "this machine has no /dev/fuse"


Scenario = Callable[[Scene], None]


def guest_works(scene: Scene) -> None:
    """Programs of the view change files of the tree, and sync what they want to have."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))

    def step(code: str, *kept: str) -> None:
        view.do(code)
        if kept:
            promises.keep("view", *kept)
        scene.neighbours()

    # What was there before is copied up, and nothing synced: it is the old content or the new, and whole.
    promises.will("view", "appended", regular(BIG + NOT_YET), regular(BIG + TAIL))
    step(f"put('appended', {TAIL!r}, 'ab')")
    promises.will("view", "script", regular(MEDIUM, 0o755))
    step("os.chmod('script', 0o755)")
    step("os.setxattr('marked', 'user.colour', b'blue')")
    promises.will("view", "below/deep/file", regular(MEDIUM, 0o600))
    step("os.chmod('below/deep/file', 0o600)")
    promises.will("view", "other", regular(MEDIUM))
    step("os.link('linked', 'other')")
    promises.will("view", "renamed", regular(MEDIUM))
    promises.will("view", "moved", ABSENT)
    promises.never_lost("view", ("moved", "renamed"), regular(MEDIUM))
    step("os.rename('moved', 'renamed')")
    # Synced.
    step("sync('appended', 'script')", "appended", "script")
    step("sync('.')", "moved", "renamed", "other")
    promises.will("view", "truncated", regular(MEDIUM[:5000]))
    step("os.truncate('truncated', 5000); sync('truncated')", "truncated")
    promises.will("view", "at-once", regular(MEDIUM + NOT_YET), regular(MEDIUM + TAIL))
    step(
        f"fd = os.open('at-once', os.O_WRONLY | os.O_APPEND | os.O_SYNC); os.write(fd, {TAIL!r}); os.close(fd)",
        "at-once",
    )
    # A new file that replaces one, as editors do it.
    promises.will("view", "text.new", ANYTHING, ABSENT)
    promises.will("view", "text", regular(BIG))
    step(f"put('text.new', {BIG!r}); sync('text.new'); os.rename('text.new', 'text'); sync('.')", "text", "text.new")
    # New names.
    promises.will("view", "new", directory(0o700), directory())
    step("os.mkdir('new'); sync('.')", "new")
    promises.will("view", "new/file", ANYTHING, regular(MEDIUM))
    step(f"put('new/file', {MEDIUM!r}); sync('new/file', 'new')", "new/file")
    promises.will("view", "new/empty", regular(b""))
    step("put('new/empty', b''); sync('new')", "new/empty")
    promises.will("view", "gone", ABSENT)
    step("os.unlink('gone'); sync('.')", "gone")
    promises.will("view", "below/name", regular(MEDIUM))
    promises.will("view", "below/file", ABSENT)
    promises.never_lost("view", ("below/file", "below/name"), regular(MEDIUM))
    step("os.rename('below/file', 'below/name'); sync('below')", "below/name", "below/file")
    view.close()


def states_are_kept(scene: Scene) -> None:
    """Checkpoints that have returned are whole, and going back to one leaves whole files."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))

    def change(path: str, content: bytes, code: str) -> None:
        promises.will("view", path, ANYTHING, regular(content))
        view.do(code)

    change("appended", BIG + TAIL, f"put('appended', {TAIL!r}, 'ab')")
    change("fresh", MEDIUM, f"put('fresh', {MEDIUM!r})")
    promises.will("view", "gone", ABSENT)
    view.do("os.unlink('gone')")
    scene.viewfs("checkpoint", "--session", NAME, "first")
    promises.begin("first", promises.newest("view"))
    scene.neighbours()
    change("fresh", MEDIUM + TAIL, f"put('fresh', {TAIL!r}, 'ab')")
    change("text", BIG, f"put('text', {BIG!r})")
    scene.viewfs("checkpoint", "--session", NAME, "second")
    promises.begin("second", promises.newest("view"))
    promises.will("view", "fresh", ABSENT)
    view.do("os.unlink('fresh'); sync('.')")
    promises.keep("view", "fresh")
    scene.neighbours()
    scene.mark("a rollback begins")
    for path, content in promises.newest("first").items():
        if promises.newest("view").get(path) != content:
            promises.will("view", path, content)
    scene.viewfs("rollback", "--session", NAME, "first")
    scene.mark("a rollback has ended")
    scene.neighbours()
    promises.keep("view", "fresh", "text")
    view.close()


def changes_are_committed(scene: Scene) -> None:
    """A commit is done as a whole or not at all, and for good once it has said so."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))
    new = {
        "appended": regular(BIG + TAIL), "script": regular(MEDIUM, 0o755), "below/deep/file": regular(MEDIUM, 0o600),
        "text": regular(BIG), "gone": ABSENT, "new": directory(), "new/file": regular(MEDIUM),
        "new/inner": directory(), "kind": regular(MEDIUM), "kind/file": ABSENT, "moved": ABSENT,
        "renamed": regular(MEDIUM),
    }  # fmt: skip
    for path, one in new.items():
        promises.will("view", path, ANYTHING, one)
    view.do(f"""
put('appended', {TAIL!r}, 'ab'); os.chmod('script', 0o755); os.chmod('below/deep/file', 0o600)
put('text', {BIG!r}); os.unlink('gone'); os.makedirs('new/inner'); put('new/file', {MEDIUM!r})
os.unlink('kind/file'); os.rmdir('kind'); put('kind', {MEDIUM!r}); os.rename('moved', 'renamed')
""")
    view.close()
    promises.commit("outside", new)
    scene.viewfs("commit", "--session", NAME)
    promises.keep("outside", *new)
    promises.keep("view", *new)
    scene.neighbours()
    # Only attributes; then a part is thrown away, a part is committed, and then everything is thrown away.
    view = Session(scene)
    scene.neighbours()
    promises.will("view", "marked", regular(MEDIUM, 0o700))
    view.do("os.chmod('marked', 0o700); sync('marked')")
    view.close()
    promises.commit("outside", {"marked": regular(MEDIUM, 0o700)})
    scene.viewfs("commit", "--session", NAME, scene.tree / "marked")
    promises.keep("outside", "marked")
    promises.keep("view", "marked")
    view = Session(scene)
    for path, one in {"truncated": regular(BIG), "linked": ABSENT, "at-once": regular(MEDIUM + TAIL)}.items():
        promises.will("view", path, ANYTHING, one)
    view.do(f"put('truncated', {BIG!r}); os.unlink('linked'); put('at-once', {TAIL!r}, 'ab'); sync('.', 'at-once')")
    promises.keep("view", "at-once")
    view.close()
    promises.will("view", "linked", regular(MEDIUM))
    scene.viewfs("discard", "--session", NAME, scene.tree / "linked")
    promises.keep("view", "linked")
    scene.neighbours()
    promises.commit("outside", {"at-once": regular(MEDIUM + TAIL)})
    scene.viewfs("commit", "--session", NAME, scene.tree / "at-once")
    promises.keep("outside", "at-once")
    promises.keep("view", "at-once")
    promises.will("view", "truncated", regular(MEDIUM))
    scene.viewfs("discard", "--session", NAME)
    promises.keep("view", "truncated")


def a_view_goes_on(scene: Scene) -> None:
    """What is committed, and thrown away, while the view runs."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))
    new = {"appended": regular(BIG + TAIL), "text": regular(BIG), "fresh": regular(MEDIUM), "gone": ABSENT}
    for path, one in {**new, "linked": ABSENT}.items():
        promises.will("view", path, ANYTHING, one)
    view.do(f"put('appended', {TAIL!r}, 'ab'); put('text', {BIG!r}); put('fresh', {MEDIUM!r}); os.unlink('gone')")
    view.do("os.unlink('linked')")
    scene.neighbours()
    promises.commit("outside", new)
    scene.viewfs("commit", "--session", NAME, *(scene.tree / name for name in new))
    promises.keep("outside", *new)
    promises.keep("view", *new)
    scene.neighbours()
    promises.will("view", "linked", regular(MEDIUM))
    scene.viewfs("discard", "--session", NAME, scene.tree / "linked")
    promises.keep("view", "linked")
    scene.neighbours()
    view.close()


def names_come_and_go(scene: Scene) -> None:
    """What was deleted does not come back when something else gets its name, while others have the journal written."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))
    view.do("look()")
    with scene.busy_neighbours(), scene.slow_server():
        for number in range(NAMES):
            promises.will("view", f"d{number}/file", ABSENT)
            promises.will("view", f"d{number}", ABSENT, directory(0o700), directory())
            view.do(f"os.unlink('d{number}/file'); os.rmdir('d{number}'); sync('.')")
            scene.neighbours()
            promises.keep("view", f"d{number}/file")
            view.do(f"os.mkdir('d{number}')")
        for number in range(NAMES):
            promises.will("view", f"f{number}", ABSENT)
            view.do(f"os.unlink('f{number}'); sync('.')")
            scene.neighbours()
            promises.keep("view", f"f{number}")
            promises.will("view", f"f{number}", regular(b""), regular(b"new"))
            view.do(f"put('f{number}', b'new')")
        for number in range(NAMES):
            names = f"r{number}", f"s{number}"
            promises.will("view", names[1], regular(b"content"))
            promises.will("view", names[0], ABSENT)
            promises.never_lost("view", names, regular(b"content"))
            view.do(f"os.rename('r{number}', 's{number}')")
    view.close()


def images_are_written(scene: Scene) -> None:
    """A new archive or tree of the view gets its name when it is whole; one that replaces another likewise."""
    promises = scene.promises
    view = Session(scene)
    promises.begin("view", promises.newest("outside"))
    view.do(f"put('fresh', {MEDIUM!r})")
    promises.will("view", "fresh", ANYTHING)
    view.close()
    promises.begin("images", {})
    for name in ("new.tar", "new.ext4"):
        begun = promises.will("images", name)
        scene.viewfs("commit", "--session", NAME, "--to", scene.out / name)
        promises.will("images", name, describe_file(scene.out / name), since=begun)
        promises.keep("images", name)
        scene.neighbours()


@pytest.mark.parametrize(
    ("scenario", "disks"),
    [
        (guest_works, 1),
        (states_are_kept, 1),
        (changes_are_committed, 1),
        (changes_are_committed, 2),
        (a_view_goes_on, 1),
        (names_come_and_go, 1),
        (images_are_written, 1),
    ],
)
@pytest.mark.parametrize("backend", ["overlay", "fuse"])
def test_the_power_fails(place: Path, backend: str, scenario: Scenario, disks: int) -> None:
    reason = missing()
    if reason is not None:
        if REQUIRED & {"root", "ext4", "loop", "fuse", "userns"}:
            pytest.fail(f"required and not there: {reason}", pytrace=False)
        pytest.skip(reason)
    report = place / "report"

    def work() -> None:
        unshare(CloneFlags.NEWNS)
        mount(None, "/", None, MountFlags.REC | MountFlags.PRIVATE)
        (place / "scene").mkdir()
        scene = Scene(place / "scene", backend, disks=disks)
        report.write_text(json.dumps(played(scene, scenario)))

    assert in_a_child(work) == 0
    looked_at, wrong = json.loads(report.read_text())
    print(f"{looked_at} moments")
    assert looked_at and not wrong, f"{looked_at} moments, {len(wrong)} findings:\n" + "\n".join(wrong)


def played(scene: Scene, scenario: Scenario) -> tuple[int, list[str]]:
    """How many moments were looked at, and what was wrong at which."""
    scene.prepare(DIRECTORIES, FILES)
    content = {path: directory() for path in DIRECTORIES} | {path: regular(data) for path, data in FILES.items()}
    with scene.recorded():
        scene.promises.begin("outside", content)
        scenario(scene)
    records = scene.records()
    cuts = choose(records, None if POINTS == "all" else int(POINTS), SEED)
    found: dict[str, list[str]] = {}
    for cut, mark, wrong in scene.look_at(records, cuts):
        for said in wrong:
            found.setdefault(said, []).append(f"{cut}, after “{mark}”")
    return len(cuts), [f"{said}\n    at {len(where)}: {where[0]} … {where[-1]}" for said, where in found.items()]
