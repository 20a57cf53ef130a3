"""Real programs at work in a copy-on-write view, committed: the same as their work done directly."""

from __future__ import annotations

import glob
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.conftest import Viewfs

#: Where PostgreSQL's programs are, which Debian has outside of the path.
POSTGRESQL = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "")
IDENTITY = "export GIT_CONFIG_GLOBAL=/dev/null GIT_{AUTHOR,COMMITTER}_{NAME=n,EMAIL=e,DATE=2020-01-01T00:00:00Z};"


@dataclass
class Work:
    """What is there before, what is done, and what is printed of the result; each in the tree."""

    before: str
    work: str
    look: str
    #: The least of paths that it changes.
    changes: int


WORKS = {
    "git": Work(
        f"""{IDENTITY} git init -q --bare origin; git init -q work; cd work
        for n in $(seq 200); do mkdir -p d$((n % 9)); seq $n $((n * 7)) > d$((n % 9))/$n; git add .; done
        git commit -qm one; for n in 1 2 3; do date -d @$n > d1/1; git commit -qam $n; done
        git push -q ../origin HEAD:main""",
        f"""{IDENTITY} git clone -q -b main --no-hardlinks origin clone; cd clone
        git -c pack.threads=1 gc -q --prune=now; git checkout -qb branch
        git rm -q d1/1; git mv d2 moved; echo x > new; git add .; git commit -qm moved
        cd ../work; git -c pack.threads=1 gc -q; git fetch -q ../clone branch; rm -r d3""",
        """for d in clone work; do cd $d; git fsck --strict 2>&1; git log --all --format=%H; git status --porcelain
        git ls-files -s; git count-objects -v | grep -v size; cd ..; done""",
        200,
    ),
    "building a C project": Work(
        """for n in $(seq 30); do echo "int f$n(int x) { return x * $n; }" > f$n.c; done
        printf 'int f7(int); int main(void) { return f7(6) != 42; }' > main.c
        printf 'OBJECTS := $(patsubst %%.c,%%.o,$(wildcard *.c))\\n' > Makefile
        printf 'program: $(OBJECTS)\\n\\tgcc -o $@ $(OBJECTS)\\n' >> Makefile""",
        """make -s; sed -i 's/42/43/' main.c; make -s; sed -i 's/43/42/' main.c; make -s
        ar rcs library.a f*.o; strip program""",
        "./program && make -q && make -n; sha256sum program *.o; ar t library.a",
        32,
    ),
    "pip install into a venv": Work(
        "",
        f"""{sys.executable} -m venv --without-pip venv
        {sys.executable} -m pip --python venv/bin/python --no-cache-dir -q install --no-index ../demo-1-py3-none-any.whl
        {sys.executable} -m pip --python venv/bin/python -q uninstall -y demo
        {sys.executable} -m pip --python venv/bin/python --no-cache-dir -q install --no-index ../demo-1-py3-none-any.whl
        """,
        f"""venv/bin/demo; {sys.executable} -m pip --python venv/bin/python list --format=freeze
        find venv -type f | grep -v '[.]pyc$' | sort""",
        10,
    ),
    "sqlite": Work(
        """sqlite3 old.db "create table t(a integer primary key, b text);
        with recursive n(i) as (select 1 union all select i+1 from n where i < 5000)
        insert into t select i, hex(i) from n" """,
        """sqlite3 old.db "pragma journal_mode=wal; begin; update t set b = b || 'x' where a % 3 = 0;
        delete from t where a % 7 = 0; commit; vacuum" > /dev/null
        sqlite3 new.db "create table u as select 1 as x; attach 'old.db' as o; create table v as select * from o.t" """,
        """for d in old new; do
        sqlite3 $d.db 'pragma integrity_check; select * from sqlite_master'; sqlite3 $d.db .dump | sha256sum; done""",
        2,
    ),
    "rsync": Work(
        """cp -a /usr/share/doc/bash source; mkdir target; echo old > target/old
        ln source/copyright* source/link; mkfifo source/f""",
        """rsync -aHAX --delete source/ target/
        echo more >> source/new; rm source/link; rsync -aHAX --delete source/ target/""",
        """rsync -aHAXnc --delete -i source/ target/
        find . -printf '%P %y %m %s %T@ %l\\n' | grep -v '^[a-z]* d' | sort""",
        10,
    ),
    "tar x with all types of files": Work(
        "",
        "tar xpf ../all.tar; tar xpf ../all.tar; rm file link; tar xpf ../all.tar; chmod 500 read-only",
        "tar df ../all.tar | grep -v '[UG]id differs' || true;"
        " find . -mindepth 1 -printf '%P %y %m %s %T@ %l %n\\n' | sort; chmod 700 read-only",
        12,
    ),
}


@pytest.fixture
def materials(tmp_path: Path) -> Path:
    """A directory with what the works need beside their tree."""
    with zipfile.ZipFile(tmp_path / "demo-1-py3-none-any.whl", "w") as wheel:
        information = "demo-1.dist-info"
        wheel.writestr("demo/__init__.py", "def main():\n    print('installed')\n")
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/entry_points.txt", "[console_scripts]\ndemo = demo:main\n")
        wheel.writestr(f"{information}/RECORD", "")
    with tarfile.open(tmp_path / "all.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, mode in (
            ("directory", tarfile.DIRTYPE, 0o2750),
            ("read-only", tarfile.DIRTYPE, 0o700),
            ("read-only/inside", tarfile.REGTYPE, 0o444),
            ("sticky", tarfile.DIRTYPE, 0o1777),
            ("fifo", tarfile.FIFOTYPE, 0o600),
            ("link", tarfile.SYMTYPE, 0o777),
            ("dangling", tarfile.SYMTYPE, 0o777),
            ("file", tarfile.REGTYPE, 0o640),
            ("hard", tarfile.LNKTYPE, 0o640),
            ("setuid", tarfile.REGTYPE, 0o4711),
            ("n" * 200, tarfile.REGTYPE, 0o600),
            ("é\n", tarfile.REGTYPE, 0o600),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.mtime = kind, mode, 1_500_000_000
            member.linkname = {"link": "file", "hard": "file", "dangling": "no/where"}.get(name, "")
            tar.addfile(member)
    return tmp_path


def in_tree(script: str, tree: Path) -> str:
    done = subprocess.run(["bash", "-eucO", "lastpipe", script], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.needs("git", "gcc", "make", "sqlite3", "rsync")
@pytest.mark.parametrize("name", WORKS)
def test_committed_is_the_same_as_done_directly(viewfs: Viewfs, materials: Path, name: str) -> None:
    work = WORKS[name]
    direct, tree = materials / "direct", materials / "cow"
    for each in (direct, tree):
        each.mkdir()
        in_tree(work.before, each)
    untouched = in_tree("find . -printf '%p %T@ %s\\n' | sort", tree)
    in_tree(work.work, direct)
    viewfs.sh("--name", "n", "--cow", tree, script=f"cd {tree}\n{work.work}")
    assert in_tree("find . -printf '%p %T@ %s\\n' | sort", tree) == untouched
    changes = viewfs("diff", "--session", "n", "--json").json["changes"]
    assert len(changes) >= work.changes
    viewfs("commit", "--session", "n")
    shown = in_tree(work.look, tree)
    expected = in_tree(work.look, direct)
    if name == "rsync":  # what was written at different moments
        shown, expected = (re.sub(r" \d+[.]\d{10} ", " ", text) for text in (shown, expected))
    assert shown == expected and shown


@pytest.mark.skipif(not POSTGRESQL, reason="PostgreSQL is not installed")
def test_postgresql(viewfs: Viewfs, tmp_path: Path) -> None:
    """A cluster is made and loaded in a view, and after the commit it is one that starts and has it all."""
    tree = tmp_path / "cow"
    tree.mkdir()
    start = (
        f"PATH={POSTGRESQL}:$PATH; export PGHOST={tmp_path}; cd {tree};"
        f' pg_ctl -s -w -D data -o "-k {tmp_path} -c listen_addresses=" -l {tmp_path}/log start;'
    )
    make = f"{POSTGRESQL}/initdb -D {tree}/data -A trust -N --data-checksums > {tmp_path}/initdb.log; {start}"
    load = """psql -qd postgres -c "create table t as select n, md5(n::text) as m from generate_series(1, 20000) n;
        create index on t(m); update t set m = 'x' where n % 10 = 0; delete from t where n % 7 = 0; checkpoint" """
    stop = "pg_ctl -s -w -D data stop"
    viewfs.sh("--name", "n", "--cow", tree, script=f"{make}\n{load}\n{stop}")
    assert not (tree / "data").exists()
    viewfs("commit", "--session", "n")
    query = """psql -Atd postgres -c "select count(*) from t; set enable_seqscan=off;
        select n from t where m = md5('3')" """
    out = in_tree(f"{POSTGRESQL}/pg_checksums --check -D {tree}/data > /dev/null; {start}\n{query}; {stop}", tree)
    assert [line for line in out.splitlines() if line != "SET"] == [str(20000 - 20000 // 7), "3"]
