"""A file system in Python that can be written (examples/memory.py), and real programs working in it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View, Viewfs

MEMORY = Path(__file__).parents[2] / "examples/memory.py"


@pytest.fixture
def view(open_view: Callable[..., View]) -> View:
    return open_view("--load", f"{MEMORY}:/desk")


def test_what_is_written_is_read(view: View) -> None:
    script = """
        cd /desk
        echo one > file; echo two >> file; cat file; wc -c < file
        printf X | dd of=file bs=1 seek=10 conv=notrunc status=none; od -An -c file | tr -s ' '
        truncate -s 3 file; cat file; stat -c %s file
        mkdir -p a/b/c; touch a/b/c/deep; ln -s ../file a/link; cat a/link; ln file hard; stat -c %h file hard
        mv a/b renamed; ls renamed/c; rm hard; ls; rmdir renamed 2>&1 || true
        chmod 640 a; touch -d '2001-02-03 04:05:06.789 UTC' a; stat -c '%a %.3Y' a
        setfattr -n user.key -v value a; getfattr --only-values -n user.key a; echo
        mkfifo fifo; stat -c %F fifo
        exec 5>unlinked; rm unlinked; echo still >&5; wc -c < /proc/self/fd/5
    """
    lines = view.sh(script).out.splitlines()
    assert lines[:3] == ["one", "two", "8"]
    assert lines[3].split() == ["o", "n", "e", "\\n", "t", "w", "o", "\\n", "\\0", "\\0", "X"]
    assert lines[4:8] == ["one3", "one2", "2", "deep"] and lines[8:11] == ["a", "file", "renamed"]
    assert "Directory not empty" in lines[11]
    assert lines[12:] == ["640 981173106.789", "value", "fifo", "6"]


def test_a_full_file_system(open_view: Callable[..., View]) -> None:
    view = open_view("--load", f"{MEMORY}:/desk,limit=1M")
    full = view.sh("head -c 2M /dev/zero > /desk/big", check=False)
    assert full.code and "No space left" in full.err
    assert view.sh("rm /desk/big; head -c 900K /dev/zero > /desk/small; stat -c %s /desk/small").out == "921600\n"


def test_permission_bits_are_checked(view: View) -> None:
    refused = view.sh("echo x > /desk/f; chmod 400 /desk/f; echo y > /desk/f", check=False)
    assert refused.code and "Permission denied" in refused.err


def test_git_tar_sqlite_gcc_and_rsync_work_in_it(view: View, tmp_path: Path) -> None:
    script = """
        cd /desk
        git init -q -b main repository; cd repository
        git config user.name N; git config user.email e@example.org
        for i in $(seq 50); do echo "file $i" > file$i; done
        git add .; git commit -qm first; git checkout -q -b other; rm file1
        git commit -qam second; git checkout -q main
        git gc -q; git fsck --full 2>&1 | grep -v '^Checking' || true; git log --oneline --all | wc -l; ls | wc -l
        cd ..
        sqlite3 data.db 'create table t(x); with recursive n(i) as (select 1 union all select i+1 from n where i<2000)
            insert into t select i from n; select sum(x) from t; pragma integrity_check;'
        echo 'int main(void){return 42;}' > a.c; gcc -o a a.c; ./a || echo $?
        tar cf repository.tar repository; mkdir out; tar xf repository.tar -C out
        diff -r repository out/repository && echo same
        rsync -a repository/ copy/; diff -r repository copy && echo same
        python3 -c "
import mmap
with open('mapped', 'wb+') as f:
    f.truncate(8192)
    with mmap.mmap(f.fileno(), 8192) as m:
        m[4090:4100] = b'0123456789'
print(open('mapped', 'rb').read()[4090:4100].decode())"
    """
    assert view.sh(script).out.split() == ["2", "50", "2001000", "ok", "42", "same", "same", "0123456789"]
    assert view.json("lsmod")["modules"][0]["state"] == "mounted"


def test_two_processes_see_each_others_changes(view: View) -> None:
    with subprocess.Popen(
        ["viewfs", "enter", view.name, "--", "sh", "-c", "read go; cat /desk/shared"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=view.viewfs.environment,
    ) as reader:
        view.sh("echo first > /desk/shared; cat /desk/shared; echo second > /desk/shared")
        assert reader.communicate("go\n")[0] == "second\n"


def test_a_read_only_file_system_says_so(viewfs: Viewfs) -> None:
    done = viewfs.sh("--load", "hello", script="exec 2>&1; echo x > /hello || true; rm /hello || true")
    assert done.out.count("Read-only file system") == 2
