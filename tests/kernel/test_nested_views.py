"""A view inside a view: it starts from what the outer one shows, and changes only itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kernel.conftest import View, Viewfs


def test_a_view_in_a_view(viewfs: Viewfs, image: Callable[..., Path], tmp_path: Path) -> None:
    inner = image("inner.img", size="1M", inner="inner")
    outer = image("outer.img", outer="outer", image=inner)
    script = f"""
        cat > {tmp_path}/inside <<'END'
        cat /mnt/outer; echo
        viewfs mount /mnt/image /mnt
        cat /mnt/inner; echo
        viewfs lsmod | tail -n +2 | wc -l
        viewfs run -- sh -c 'cat /mnt/inner; echo; id -u'
END
        viewfs run --name second -- sh -eu {tmp_path}/inside
        cat /mnt/outer; echo
        viewfs epochs --json | grep -o '"current": *[0-9]*'
    """
    done = viewfs.sh("--mount", f"{outer}:/mnt", "--name", "first", script=script)
    lines = done.out.split()
    assert lines[:4] == ["outer", "inner", "1", "inner"]
    assert lines[5] == "outer", "the outer view is as it was"
    assert lines[-1].endswith("1")


def test_each_command_acts_on_the_view_it_is_in(viewfs: Viewfs) -> None:
    inner = "viewfs mount -t tmp n /x; viewfs lsmod | grep -c /x"
    script = f"viewfs run --name second -- sh -c '{inner}'; viewfs lsmod | grep -c /x || true"
    assert viewfs.sh("--name", "first", script=script).out.split() == ["1", "0"]


def test_the_inner_view_ends_with_the_outer(open_view: Callable[..., View]) -> None:
    """The fixture looks for what is left: nothing, though the inner session was to be kept."""
    view = open_view("--load", "hello")
    view.sh("viewfs run --keep --name second --load hello:/second -- sh -c 'cat /second'")
    sessions = {session["name"] for session in view.viewfs("ps", "--json").json["sessions"]}
    assert sessions == {"test", "second"}
    view.close()


def test_as_root_in_a_view_and_back(viewfs: Viewfs) -> None:
    done = viewfs.sh(script="id -u; viewfs run --as-root -- sh -c 'id -u; viewfs run --as-root -- id -u'")
    assert done.out.split()[1:] == ["0", "0"]


def test_many_levels(viewfs: Viewfs) -> None:
    command = "cat /l5 /l4 /l3 /l2 /l1"
    for level in range(5, 0, -1):
        command = f"viewfs run --load hello:/l{level} -- {command}"
    assert viewfs.sh(script=command).out == "Hello from viewfs!\n" * 5
