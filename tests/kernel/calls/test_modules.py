"""Loading and unloading modules that answer system calls, and which of several is asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs, wait_until

OpenView = Callable[..., View]
WriteModule = Callable[..., Path]
WriteCaller = Callable[[str], str]

NAME = """
@call("uname")
def uname(self, caller, name):
    name.sysname = b"{name}"
"""


def test_the_module_of_the_thesis_in_ten_lines(viewfs: Viewfs, tmp_path: Path) -> None:
    """Every read of every file below /hello gives the greeting, whichever program reads."""
    lines = """
from viewfs.modules.api.calls import CallModule, File, call

class Hello(CallModule):
    name = "greeting"
    mount_point = "/hello"

    @call("open")
    def open(self, caller, path, flags, mode):
        return File(b"Hello UMView\\n")
"""
    assert len(lines.strip().splitlines()) <= 10
    (tmp_path / "hello.py").write_text(lines)
    script = "viewfs insmod ./hello.py; cat /hello/a /hello/b/c; dd if=/hello/x bs=5 count=1 2>/dev/null; ls /hello/y"
    done = viewfs.sh("--calls=open", script=script, check=False)
    assert done.out == "Hello UMView\nHello UMView\nHello" and "/hello/y" in done.err


def test_the_newest_answers_and_can_let_others(open_view: OpenView, module: WriteModule) -> None:
    view = open_view()
    view("insmod", module(NAME.format(name="one"), "one"))
    assert view.sh("uname").out == "one\n"
    view("insmod", module(NAME.format(name="two"), "two"))
    view("insmod", module('@call("uname")\ndef uname(self, caller, name):\n    return GO_ON', "three"))
    assert view.sh("uname").out == "two\n"
    assert [view.sh(f"viewfs at {epoch} -- uname").out for epoch in range(4)] == ["Linux\n", "one\n", "two\n", "two\n"]
    view("rmmod", "two")
    assert view.sh("uname").out == "one\n"
    view("rmmod", "one")
    assert view.sh("uname").out == "Linux\n"


def test_what_runs_already(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """A module acts at once on programs that were there before it, and is gone for them when it is gone."""
    view = open_view()
    lines = "for line in sys.stdin:\n    print(os.uname().sysname, outcome(5000), flush=True)"
    command = [*view.viewfs.command, "enter", view.name, "--", "sh", "-c", caller(lines)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=view.viewfs.environment
    ) as running:
        assert running.stdin is not None and running.stdout is not None

        def ask() -> str:
            running.stdin.write("\n")  # type: ignore[union-attr]
            running.stdin.flush()  # type: ignore[union-attr]
            return running.stdout.readline()  # type: ignore[union-attr]

        assert ask() == "Linux ENOSYS\n"
        members = NAME.format(name="new") + "\n@call(5000)\ndef answer(self, caller, *words):\n    return 7\n"
        view("insmod", module(members))
        assert ask() == "new 7\n"
        view("rmmod", "probe")
        assert ask() == "Linux ENOSYS\n"
        running.stdin.close()


def test_a_module_sees_the_view_before_it(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    """What it asks for itself is answered by the modules before it: of any call, sealed or not."""
    view = open_view("--calls=open")
    (tmp_path / "file").write_text("the file")
    below = '@call("open")\ndef open(self, caller, path, flags, mode):\n    return File(b"below")'
    view("insmod", module(below, "below"), tmp_path / "file")
    above = f"""
        uses_view = True

        @call("open")
        def open(self, caller, path, flags, mode):
            with open({str(tmp_path / "file")!r}) as file:
                return File(b"above " + file.read().encode())
    """
    view("insmod", module(above, "above"), tmp_path / "file")
    view("insmod", module(above, "again"), tmp_path / "file")
    assert view.sh(f"cat {tmp_path}/file").out == "above above below"
    view("rmmod", "below")
    assert view.sh(f"cat {tmp_path}/file").out == "above above below", "they go on seeing it"
    states = {row["module"]: row["state"] for row in view.json("lsmod")["modules"]}
    assert states == {"below": "unmounted", "above": "mounted", "again": "mounted"}
    view("rmmod", "above")
    view("rmmod", "again")
    assert view.sh(f"cat {tmp_path}/file").out == "the file"
    wait_until(lambda: view.json("lsmod")["modules"] == [], "no server is left")


def test_a_sealed_module_sees_the_view_before_it(open_view: OpenView, module: WriteModule) -> None:
    view = open_view()
    members = """
        @call("uname")
        def uname(self, caller, name):
            name.sysname = os.uname().sysname.encode() + b"!"
    """
    for name in ("one", "two", "three"):
        view("insmod", module(members, name))
    assert view.sh("uname; viewfs rmmod one; uname").out == "Linux!!!\nLinux!!\n"
    assert view.sh("viewfs rmmod three; uname; viewfs rmmod two; uname").out == "Linux!\nLinux\n"


def test_a_place(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    """Of a module at a place is what leads there: by path, by a directory, by a descriptor."""
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("in/deep/file", "in/file", "inside"):
        (tmp_path / name).write_text("real")
    members = """
        @call("open")
        def open(self, caller, path, flags, mode):
            return File(path.rpartition("/")[2].encode())

        @call("sync")
        def sync(self, caller, fd):
            raise OSError(errno.ENOSPC, "")
    """
    view = open_view("--calls=open,sync")
    view("insmod", module(members), tmp_path / "in")
    script = f"cd {tmp_path}; cat in/file ./in/../in/deep/x inside; cd in; cat ../inside file; cat {tmp_path}//in//y"
    assert view.sh(script).out == "filexrealrealfiley"
    sync = "import os,sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))"
    assert view.sh(f"python3 -c '{sync}' {tmp_path}/inside").code == 0
    assert view.sh(f"cd {tmp_path}; exec 5<inside; viewfs rmmod probe; cat inside").out == "real"


def test_a_choice_of_its_own(open_view: OpenView, module: WriteModule, tmp_path: Path) -> None:
    members = """
        @call("uname")
        def uname(self, caller, name):
            name.sysname = b"chosen"

        def owns(self, caller, *arguments):
            return caller.cwd == "/" and caller.call == "uname"
    """
    view = open_view()
    view("insmod", module(members))
    assert view.sh("cd /; uname; cd /tmp; uname").out == "chosen\nLinux\n"


def test_what_is_shown(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    members = """
        @call(5000, "size")
        def answer(self, caller, number):
            if number:
                raise OSError(number, "")

        @call("uname")
        def uname(self, caller, name):
            return GO_ON
    """
    view = open_view()
    made = view.json("insmod", str(module(members)), "/place")
    assert made == {"epoch": 1, "path": "/place"} | {name: made[name] for name in made.keys() - {"epoch", "path"}}
    view("rmmod", "/place")
    view("insmod", module(members))
    view.sh(caller("print([outcome(5000, number) for number in (0, 2, 13)])"))
    (row,) = view.json("lsmod")["modules"]
    assert row["calls"] == ["5000", "uname"] and row["state"] == "mounted" and row["confinement"].startswith("sealed")
    assert row["requests"]["5000"] == 3 and row["errors"] == 2
    (stats,) = view.json("stats")["servers"]
    assert stats["requests"]["5000"] == 3 and stats["latency_ns"]["5000"]["p50"] > 0
    assert "5000" in view("stats").out
    assert "5000, uname" in view("lsmod").out
    assert [row["operation"] for row in view.json("epochs")["epochs"]] == ["start", "insmod", "rmmod", "insmod"]
    assert view.json("resolve", "/place")["serving"] is None, "it lies over nothing"


@pytest.mark.parametrize(
    ("members", "options", "says"),
    [
        ('@call("open")\ndef open(self, *arguments):\n    pass', [], "--calls=open"),
        ('@call("read")\ndef read(self, *arguments):\n    pass', ["--calls=open"], "--calls=open,read"),
        ('@call("uname")\ndef answer(self, *arguments):\n    pass', ["--no-calls"], "without --no-calls"),
        ("pass", [], "@call"),
        ('@call("nonsense")\ndef answer(self, *arguments):\n    pass', [], "nonsense"),
        ('@call(9)\ndef answer(self, *arguments):\n    pass', [], "1000"),
        ('@call(1000, "out@3 size")\ndef answer(self, *arguments):\n    pass', [], "no argument 3"),
        ('@call(1000, "pointer")\ndef answer(self, *arguments):\n    pass', [], "pointer"),
        ('@call("uname")\ndef uname(self, *_):\n    pass\ndef begin(self, mounting):\n    1 / 0', [], "division"),
        (
            'options = (text("must", "", "x"),)\n@call("uname")\ndef answer(self, *arguments):\n    pass\n'
            'def begin(self, mounting):\n    raise UsageError("it wants more")',
            [], "it wants more",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_loaded(
    open_view: OpenView, module: WriteModule, members: str, options: list[str], says: str
) -> None:
    view = open_view(*options)
    refused = view("insmod", module(members), check=False)
    assert refused.code != 0 and says in refused.err and len(refused.err.splitlines()) == 1, refused.err
    assert view.json("lsmod")["modules"] == [] and view.json("epochs")["current"] == 0


def test_in_a_view_inside_a_view(viewfs: Viewfs) -> None:
    script = "viewfs insmod uname -o sysname=outer; viewfs run -- sh -c 'uname; viewfs insmod uname'"
    done = viewfs.sh(script=script, check=False)
    assert done.out == "outer\n" and done.code == 2 and "outer view" in done.err


def test_families_that_there_are_not(viewfs: Viewfs) -> None:
    refused = viewfs("run", "--calls=open,noise", "--", "true", check=False)
    assert refused.code == 2 and "“noise”" in refused.err and "readlink" in refused.err
    refused = viewfs("run", "--calls=open", "--no-calls", "--", "true", check=False)
    assert refused.code == 2 and "exclude" in refused.err


def test_a_restart_takes_the_code_as_it_is_now(open_view: OpenView, module: WriteModule) -> None:
    view = open_view()
    path = module(NAME.format(name="before"))
    view("insmod", path)
    assert view.sh("uname").out == "before\n"
    module(NAME.format(name="after"))
    view("restart", "probe")
    assert view.sh("uname").out == "after\n"
    module(NAME.format(name="other") + '@call("personality")\ndef more(self, caller, number):\n    pass\n')
    refused = view("restart", "probe", check=False)
    assert refused.code == 2 and "other calls" in refused.err
    assert view.sh("uname").out == "after\n"


def test_many_modules(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    """Each answers; and none is left when it is unloaded, but for the one that is."""
    view = open_view()
    for number in range(30):
        view(
            "insmod",
            module(f"@call({5000 + number})\ndef answer(self, caller, *words):\n    return {number}", f"m{number}"),
        )
    assert view.sh(caller("print([call(5000 + number) for number in range(30)])")).out == f"{list(range(30))}\n"
    for number in range(29):
        view("rmmod", f"m{number}")
    assert view.sh(caller("print(outcome(5000), outcome(5029))")).out == "ENOSYS 29\n"
    wait_until(lambda: len(view.json("lsmod")["modules"]) == 1, "the others are gone")


def test_a_server_that_may_use_nothing(open_view: OpenView, module: WriteModule, caller: WriteCaller) -> None:
    members = """
        @call(5000)
        def try_all(self, caller, *words):
            found = 0
            attempts = (lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.kill(caller.pid, 0),
                        lambda: os.execv("/bin/true", ["true"]), lambda: os.fork())
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                    found |= 1 << number
                except OSError:
                    pass
            return found
    """
    view = open_view()
    view("insmod", module(members))
    assert view.sh(caller("print(call(5000))")).out == "0\n"


def test_json_of_lsmod_has_calls_for_all(open_view: OpenView) -> None:
    view = open_view()
    view("insmod", "hello")
    view("insmod", "uname")
    assert {row["module"]: row["calls"] for row in view.json("lsmod")["modules"]} == {"hello": None, "uname": ["uname"]}
