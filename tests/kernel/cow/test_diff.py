"""`viewfs diff` says what was done in a view, whichever way the layer holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.cow.conftest import Cow


def test_every_kind_of_change(cow: Cow, tree: Path) -> None:
    cow.sh("""
        printf 'one\\n2\\nthree\\n' > text
        printf 'x' | dd of=binary bs=1 seek=5 conv=notrunc status=none
        rm directory/gone
        mv directory/deeper/file directory/moved
        mkdir new; echo n > new/file; ln new/file new/other; mkfifo new/fifo; ln -s nowhere new/link
        chmod 700 script
        ln -sf binary link
        touch -d '2001-02-03' empty
        setfattr -n user.colour -v blue text
    """)
    changes = cow.changes()
    told = {path: (row["kind"], row["aspects"]) for path, row in changes.items()}
    assert told == {
        "binary": ("changed", ["content", "times"]),
        "directory/gone": ("deleted", []),
        "directory/moved": ("renamed", []),
        "link": ("changed", ["target", "times"]),
        "new": ("added", []),
        "new/fifo": ("added", []),
        "new/file": ("added", []),
        "new/link": ("added", []),
        "new/other": ("added", []),
        "script": ("changed", ["mode"]),
        "text": ("changed", ["content", "times", "xattrs"]),
    }
    assert changes["directory/moved"]["from"] == f"{tree}/directory/deeper/file"
    assert changes["new/file"]["links"] == [f"{tree}/new/other"]
    assert changes["new/fifo"]["new"]["type"] == "fifo" and changes["new/link"]["new"]["target"] == "nowhere"
    assert (changes["script"]["old"]["mode"], changes["script"]["new"]["mode"]) == ("644", "700")
    assert changes["text"]["new"]["xattrs"] == {"user.colour": b"blue".hex()}
    out = cow("diff").out
    assert "\n-two\n+2\n three\n" in out
    assert f"changed  {tree}/binary  2.5 KiB, others\n" in out
    assert f"changed  {tree}/script  mode 644 → 700\n" in out
    assert f"renamed  {tree}/directory/deeper/file → {tree}/directory/moved\n" in out
    assert f"added    {tree}/new/fifo  fifo\n" in out
    assert f"changed  {tree}/link  text → binary\n" in out and "+user.colour" in out


def test_nothing(cow: Cow) -> None:
    cow.sh("cat text; ls -R > /dev/null; touch -a -d 2001-01-01 text; mkdir x; rmdir x; echo a > y; rm y")
    assert cow("diff").out == "" and cow.changes() == {}
    assert cow("diff", "--stat").out == "nothing has changed\n"


def test_what_was_written_and_is_the_same_again(cow: Cow) -> None:
    cow.sh(
        "cp -p text copy; echo other > text; cat copy > text; touch -r copy text; rm copy;"
        " chmod 600 script; chmod 644 script"
    )
    assert cow.changes() == {}


def test_directories_that_were_removed_and_made_again(cow: Cow) -> None:
    """Opaque ones: nothing of what was in them is seen, and only what is in them now."""
    cow.sh("rm -r directory; mkdir directory; echo n > directory/new; echo 'to be deleted' > directory/gone")
    told = {path: row["kind"] for path, row in cow.changes().items()}
    assert told == {
        "directory/deeper": "deleted",
        "directory/deeper/file": "deleted",
        "directory/gone": "changed",
        "directory/new": "added",
    }


def test_a_directory_that_becomes_a_file_and_back(cow: Cow) -> None:
    cow.sh("rm -r directory; echo file > directory")
    changes = cow.changes()
    assert changes["directory"]["aspects"] == ["type"] and changes["directory/deeper/file"]["kind"] == "deleted"
    assert "directory  directory → file\n" in cow("diff", "--stat").out
    cow.sh("rm directory; mkdir directory; echo x > directory/x")
    told = {path: row["kind"] for path, row in cow.changes().items() if "mode" not in row["aspects"]}
    assert told == {
        "directory/deeper": "deleted",
        "directory/deeper/file": "deleted",
        "directory/gone": "deleted",
        "directory/x": "added",
    }
    cow.sh("rm text; mkdir text; touch text/inside")
    assert cow.changes("--", f"{cow.tree}/text")["text"]["aspects"] == ["type"]


def test_only_some_paths(cow: Cow, tree: Path) -> None:
    cow.sh("echo x > text; echo x > directory/new; echo x > directory/deeper/file; mkdir a; mkdir a/b; echo x > a/b/c")
    assert set(cow.changes(tree / "directory")) == {"directory/new", "directory/deeper/file"}
    assert set(cow.changes(tree / "text", tree / "a/b/c")) == {"text", "a/b/c"}
    assert set(cow.changes(tree.parent)) == {"text", "directory/new", "directory/deeper/file", "a", "a/b", "a/b/c"}
    assert cow.changes(tree / "script") == {} and cow.changes(tree / "no/such") == {}


ODD = [b"new\nline", b"not utf-8 \xff\xfe", b" ", b"-n", b"a\\b", b"\x1b[31mred", b"n" * 255, "é".encode()]


def test_odd_names(cow: Cow, tree: Path) -> None:
    made = ";".join(f"open(bytes.fromhex('{name.hex()}'), 'w').close()" for name in ODD)
    cow.sh(f'python3 -c "{made}"')
    names = {os.fsencode(path) for path in cow.changes()}
    assert names == set(ODD)
    lines = cow("diff", "--name-only").out.splitlines()
    assert len(lines) == len(ODD)
    assert f"{tree}/new\\nline" in lines and f"{tree}/\\x1b[31mred" in lines


def test_text_that_is_none(cow: Cow) -> None:
    cow.sh(
        "printf 'a\\0b' > nul; printf '\\377\\376' > latin; printf 'no newline' > short;"
        " head -c 600000 /dev/zero | tr '\\0' 'x' > large"
    )
    out = cow("diff").out
    assert "+no newline (no newline at the end)\n" in out
    assert "+++ " not in out.split("added    " + str(cow.tree) + "/nul")[1].split("added")[0]
    assert len(out) < 5000


def test_terminal_sequences_in_text_are_shown(cow: Cow) -> None:
    cow.sh("printf 'evil \\033]0;title\\007\\n' > text")
    assert "+evil \\x1b]0;title\\x07\n" in cow("diff").out


def test_a_sparse_file_is_not_read_through(cow: Cow) -> None:
    cow.sh(
        "truncate -s 10G sparse; printf end | dd of=sparse bs=1 seek=9G conv=notrunc status=none; cp -p sparse other"
    )
    changes = cow.changes()
    assert changes["sparse"]["new"]["size"] == 10 << 30
    assert cow("diff", "--stat").out.startswith(f"added    {cow.tree}/other  10.0 GiB\n")


@pytest.mark.parametrize("owner", ["", "--as-root"])
def test_files_that_nobody_may_read(cow: Cow, owner: str) -> None:
    cow.sh(
        "echo secret > text; chmod 0 text; mkdir closed; echo x > closed/inside; chmod 0 closed",
        *([owner] if owner else []),
    )
    assert "+secret\n" in cow("diff").out and "closed/inside" in cow.changes()


def test_it_is_in_proportion_to_what_changed(cow: Cow, tree: Path) -> None:
    """No directory that the view has not changed is read, however many there are."""
    import subprocess

    for number in range(300):
        (tree / f"many/{number}").mkdir(parents=True)
        (tree / f"many/{number}/file").touch()
    cow.sh("echo x > many/7/file")
    trace = tree.parent / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=openat2,getdents64,newfstatat", "-o", trace]
    done = subprocess.run(
        [*command, "viewfs", "diff", "--session", "cow", "--name-only"],
        env=cow.viewfs.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tree}/many/7/file\n"
    opened = [line for line in trace.read_text().splitlines() if "many/" in line or '"7"' in line]
    assert opened and not [line for line in opened if '"8"' in line or "many/8" in line]
