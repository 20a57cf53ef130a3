"""Modules: those that are built in, those that somebody writes, and those that misbehave."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, wait_until

Write = Callable[[str], Path]


@pytest.fixture
def module(tmp_path: Path) -> Write:
    """A module file."""

    def write(source: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(source))
        return path

    return write


def test_hello(open_view: Callable[..., View]) -> None:
    view = open_view()
    view("insmod", "hello")
    assert (
        view.sh("cat /hello; stat -c %F /hello; wc -c < /hello").out == "Hello from viewfs!\nregular empty file\n19\n"
    )
    view("insmod", "hello", "/deep/er/greeting")
    assert view.sh("cat /deep/er/greeting").out == "Hello from viewfs!\n"
    twice = view("rmmod", "hello", check=False)
    assert twice.code == 2 and "/hello, /deep/er/greeting" in twice.err
    view("rmmod", "/hello")
    view("rmmod", "hello")
    assert view.sh("ls -d /hello /deep 2>&1 || true").out.count("No such file") == 2
    gone = view("rmmod", "hello", check=False)
    assert gone.code == 4 and gone.err == "viewfs: no module hello is loaded; `viewfs lsmod` lists what is\n"


def test_unreal(open_view: Callable[..., View], tmp_path: Path, image: Callable[..., Path]) -> None:
    view = open_view("--mount", f"{image(file='in the image')}:/mnt", "--load", "unreal")
    view.sh(
        f"echo written > /unreal{tmp_path}/file; mkdir /unreal{tmp_path}/d; mv /unreal{tmp_path}/d {tmp_path}/moved"
    )
    assert (tmp_path / "file").read_text() == "written\n" and (tmp_path / "moved").is_dir()
    assert view.sh("cat /unreal/mnt/file").out == "in the image"
    assert view.sh("ls /unreal/unreal").out == "", "it is not in itself"
    assert view.sh("echo x > /unreal/dev/null; cat /unreal/proc/self/comm").out == "cat\n"
    assert "fuse" not in view.sh("findmnt -n -o FSTYPE /unreal").out, "the kernel serves it"
    # It shows the view as it was: a later mount is not in it, one that is gone from the view still is.
    view("mount", "-t", "tmp", "none", "/later")
    view("umount", "/mnt")
    assert view.sh("touch /later/file; ls /unreal/later; cat /unreal/mnt/file").out == "in the image"
    view("rmmod", "unreal")
    assert view.sh("ls -d /unreal 2>/dev/null || echo gone").out == "gone\n"


def test_tmp(viewfs: Viewfs) -> None:
    script = "cd /scratch; stat -c %a .; head -c 2M /dev/zero > big 2>/dev/null || echo full; df -h --output=size ."
    done = viewfs.sh("--mount", "none:/scratch:tmp,size=1M,mode=0700", script=script)
    assert done.out.split() == ["700", "full", "Size", "1.0M"]


def test_bind(viewfs: Viewfs, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    options = (
        "--mount",
        f"{tmp_path}/a:/bound",
        "--mount",
        f"{tmp_path}/a:/sealed:bind,ro",
        "--mount",
        f"{tmp_path}/a/file:/f:bind",
    )
    done = viewfs.sh(*options, script="echo y > /bound/new; cat /sealed/new /f; touch /sealed/no 2>&1 || true")
    assert done.out.startswith("y\nx") and "Read-only" in done.out
    assert (tmp_path / "a/new").exists()


def test_a_module_of_ones_own(open_view: Callable[..., View], module: Write) -> None:
    path = module(
        """
        from viewfs.modules.api import Module
        from viewfs.modules.api.nodes import ComputedFile, Directory, Link, NodeFileSystem
        from viewfs.modules.api.options import choice, integer
        import trio

        class Mine(Module):
            '''Some nodes.'''
            name = "mine"
            mount_point = "/mine"
            options = (integer("times", 1, "how often"), choice("case", ("lower", "upper"), "lower", "which case"))

            def open(self, mounting):
                times = mounting.options["times"]
                async def slowly():
                    await trio.sleep(0)
                    return "later\\n"
                def word():
                    text = "word " * times
                    return (text.upper() if mounting.options["case"] == "upper" else text) + mounting.mount_point
                return NodeFileSystem(Directory({
                    "word": ComputedFile(word), "later": ComputedFile(slowly), "link": Link("word"),
                    "sub": Directory({"secret": ComputedFile(lambda: "s", 0o400)}),
                }))
        """
    )
    view = open_view("--load", f"{path},times=2,case=upper")
    assert view.sh("cat /mine/word; echo; cat /mine/link; echo; cat /mine/later; cat /mine/sub/secret").out == (
        "WORD WORD /mine\nWORD WORD /mine\nlater\ns"
    )
    assert view.sh("ls -a /mine; ls -i /mine/sub | wc -l; readlink /mine/link").out.split() == [
        ".", "..", "later", "link", "sub", "word", "1", "word",
    ]  # fmt: skip
    assert view.sh("cat /mine/none /mine/word/x 2>&1 || true").out.count("\n") == 2
    assert view.json("lsmod")["modules"][0]["module"] == "mine"


def test_one_of_several_in_a_file(open_view: Callable[..., View], tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        """if True:
        from viewfs.modules.api import Module
        from viewfs.modules.api.nodes import ComputedFile, Directory, NodeFileSystem

        class First(Module):
            name = "first"
            mount_point = "/" + name

            def open(self, mounting):
                return NodeFileSystem(Directory({"word": ComputedFile(lambda: self.name)}))

        class Second(First):
            name = "second"
            mount_point = "/" + name
        """
    )
    view = open_view()
    refused = view("insmod", "two.py", check=False)
    assert refused.code == 2 and "defines 2 modules; say which: " in refused.err
    assert refused.err.endswith("/two.py:First\n")
    view("insmod", "two.py:Second")
    view("insmod", "./two.py:First")
    assert view.sh("cat /first/word /second/word").out == "firstsecond"
    view("restart", "/second")
    assert view.sh("cat /second/word").out == "second"
    none = view("insmod", "two.py:Third", check=False)
    assert none.code == 2 and "two.py:Third is neither a viewfs module nor" in none.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nothing"], 4, "no module is called nothing"),
        (["hello", "-o", "colour=red"], 2, "module hello has no option colour"),
        (["hello", "-o", "colour=red"], 2, "every mount has memory, processes, listing, deadline"),
        (["tmp", "/t", "-o", "size=big"], 2, "option size of module tmp: “big” should be a size"),
        (["tmp"], 2, "module tmp has no place of its own"),
        (["ext", "/mnt"], 2, "module ext needs a source"),
        (["./missing.py"], 4, "no such module file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    open_view: Callable[..., View], arguments: list[str], code: int, says: str
) -> None:
    view = open_view()
    refused = view("insmod", *arguments, check=False)
    assert refused.code == code and refused.err.count("\n") == 1
    assert says in refused.err and refused.err.startswith("viewfs: ")
    assert view.json("epochs")["current"] == 0


def test_sources_that_are_none(open_view: Callable[..., View], tmp_path: Path) -> None:
    view = open_view()
    (tmp_path / "text").write_text("just text")
    (tmp_path / "empty").touch()
    subprocess.run(["mkfifo", tmp_path / "fifo"], check=True)
    for source, code, says in [
        ("text", 5, "is a text, which viewfs does not mount"),
        ("empty", 5, "is an empty file"),
        ("missing", 2, "no such file or directory"),
        ("fifo", 2, "neither a file nor a block device"),
        ("/dev/zero", 2, "neither a file nor a block device"),
    ]:
        refused = view("mount", tmp_path / source, "/mnt", check=False)
        assert (refused.code, refused.err.count("\n")) == (code, 1), refused
        assert says in refused.err
    for kind, code, says in [
        ("ext", 5, "text"),
        ("squashfs", 5, "too short for a squashfs file system"),
        ("nosuch", 4, "no module is called nosuch"),
    ]:
        forced = view("mount", "-t", kind, tmp_path / "text", "/mnt", check=False)
        assert (forced.code, forced.err.count("\n")) == (code, 1), forced
        assert says in forced.err
    assert view.json("epochs")["current"] == 0


def test_a_faulty_module_fails_call_by_call(open_view: Callable[..., View], module: Write) -> None:
    path = module(
        """
        from viewfs.modules.api import Module
        from viewfs.modules.api.nodes import ComputedFile, Directory, NodeFileSystem

        def fail():
            raise ZeroDivisionError("oh no")

        class Faulty(Module):
            name = "faulty"
            mount_point = "/faulty"

            def open(self, mounting):
                return NodeFileSystem(Directory({"good": ComputedFile(lambda: "good"), "bad": ComputedFile(fail)}))
        """
    )
    view = open_view("--load", str(path))
    for _again in range(3):
        assert "Input/output error" in view.sh("cat /faulty/bad 2>&1 || true").out
        assert view.sh("cat /faulty/good").out == "good"
    assert "ZeroDivisionError: oh no" in view("log").out


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
        ("from viewfs.errors import DamagedSourceError; raise DamagedSourceError('told so')", 5, "told so"),
        ("import os; os._exit(3)", 1, "the worker ended (exit status 3)"),
        ("import os; os.abort()", 1, "the worker ended"),
    ],
)
def test_a_module_that_cannot_open(
    open_view: Callable[..., View], module: Write, body: str, code: int, says: str
) -> None:
    path = module(
        f"""
        from viewfs.modules.api import Module
        class Broken(Module):
            name = "broken"
            mount_point = "/broken"
            def open(self, mounting):
                {body}
        """
    )
    view = open_view()
    refused = view("insmod", path, check=False)
    assert refused.code == code and says in refused.err and refused.err.count("\n") == 1
    assert view.sh("ls -d /broken 2>/dev/null || echo none").out == "none\n"


def test_a_module_that_hangs_can_be_removed(open_view: Callable[..., View], module: Write) -> None:
    path = module(
        """
        import sys, time
        from viewfs.modules.api import Module
        from viewfs.modules.api.nodes import computed_file

        def hang():
            print("hanging now", file=sys.stderr, flush=True)
            time.sleep(1000)

        class Hung(Module):
            name = "hung"
            mount_point = "/hung"
            def open(self, mounting):
                return computed_file(hang)
        """
    )
    view = open_view("--load", str(path), "--load", "hello")
    reader = subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "cat", "/hung"], env=view.viewfs.environment, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: "hanging now" in view("log").out, "the reader waits for it")
    assert view.sh("cat /hello").out == "Hello from viewfs!\n", "others are not held up"
    view("rmmod", "--lazy", "hung")
    assert view.sh("ls -d /hung 2>/dev/null || echo gone").out == "gone\n"
    reader.kill()
    reader.wait(30)


def test_what_is_available_is_listed(viewfs: Viewfs) -> None:
    listed = {row["module"]: row for row in viewfs("lsmod", "--available", "--json").json["modules"]}
    assert {"ext", "hello", "tmp", "unreal", "bind"} <= set(listed)
    assert [option["name"] for option in listed["tmp"]["options"]] == ["size", "mode", "source"]
    assert listed["unreal"]["place"] == "/unreal" and listed["ext"]["takes_source"]
    shown = viewfs("lsmod", "--available").out
    assert "owner=auto|me|keep" in shown and "built in" in shown


def test_modules_are_found_as_entry_points(viewfs: Viewfs, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "other-1.0.dist-info").mkdir(parents=True)
    (site / "other-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (site / "other-1.0.dist-info/entry_points.txt").write_text("[viewfs.modules]\nother = other:Other\n")
    (site / "other.py").write_text(
        "from viewfs.modules.api import Module\nfrom viewfs.modules.api.nodes import computed_file\n"
        "class Other(Module):\n    'From elsewhere.'\n    name = 'other'\n    mount_point = '/other'\n"
        "    def open(self, mounting):\n        return computed_file(lambda: 'installed')\n"
    )
    viewfs.environment["PYTHONPATH"] = f"{viewfs.environment.get('PYTHONPATH', '')}:{site}"
    assert viewfs.sh("--load", "other", script="cat /other").out == "installed"
    listed = {row["module"]: row["origin"] for row in viewfs("lsmod", "--available", "--json").json["modules"]}
    assert listed["other"] == "other"


def test_a_module_sees_the_view_as_it_was_before_its_own_mount(
    open_view: Callable[..., View], module: Write, image: Callable[..., Path]
) -> None:
    path = module(
        """
        from viewfs.modules.api import Module
        from viewfs.modules.api.nodes import ComputedFile, Directory, NodeFileSystem

        def read():
            with open("/mnt/file") as file:
                return file.read().upper()

        class Louder(Module):
            name = "louder"
            mount_point = "/mnt"
            uses_view = True

            def open(self, mounting):
                return NodeFileSystem(Directory({"file": ComputedFile(read)}))
        """
    )
    view = open_view("--mount", f"{image(file='from below')}:/mnt", "--load", str(path), "--load", f"{path}:/mnt")
    # The first reads the image under it, the second the first; the second one's mount is what everybody else sees.
    assert view.sh("cat /mnt/file").out == "FROM BELOW"
    assert view("at", "1", "--", "cat", "/mnt/file").out == "from below"
    # What is mounted later does not reach them, nor does what is taken away.
    view("mount", "-t", "tmp", "none", "/mnt")
    view("umount", "/mnt")
    assert view.sh("cat /mnt/file").out == "FROM BELOW"
    assert [row["pinned_by"] for row in view.json("lsmod")["modules"]] == [[2, 3], [3], []]
