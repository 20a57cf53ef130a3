"""Which changes are meant: --exclude and --include, a question at the end (--ask), layers in a directory (--layer).

What people do who know `try` is here too, with the command of viewfs that does it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.kernel.conftest import SECONDS, Result, Viewfs, wait_until
from tests.kernel.cow.conftest import Cow, OpenView, snapshot

BACKENDS = pytest.mark.parametrize("backend", ["overlay", "fuse"])


@pytest.fixture
def work(viewfs: Viewfs, project: Path) -> Cow:
    return Cow(viewfs, project, name="work")


#: Something is added, changed and deleted, in sources and objects.
BUILD = """
    echo new > a.c; echo new > a.o; echo new > src/deep/b.o; echo new > src/deep/new.c; echo new > src/deep/new.o
    rm src/a.o; mkdir -p target/obj; echo new > target/obj/c.o; echo new > target/main; echo new > build/x
"""
OBJECTS = {"a.o", "src/deep/b.o", "src/deep/new.o", "src/a.o", "target/obj/c.o"}
EVERYTHING = OBJECTS | {"a.c", "src/deep/new.c", "target", "target/obj", "target/main", "build/x"}


def files(top: Path) -> dict[str, str]:
    """The content of all files below `top`."""
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


# --exclude and --include


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (("--exclude", "*.o"), EVERYTHING - OBJECTS),
        (("--exclude", "?.[ch]"), EVERYTHING - {"a.c"}),
        (("--exclude", "build/x"), EVERYTHING - {"build/x"}),
        (("--exclude", "x"), EVERYTHING - {"build/x"}),
        (("--exclude", "deep/b.o"), EVERYTHING),  # it is not at that path
        (("--exclude", "src/deep"), EVERYTHING - {one for one in EVERYTHING if one.startswith("src/deep/")}),
        (("--exclude", "src/"), EVERYTHING - {one for one in EVERYTHING if one.startswith("src/")}),
        (("--exclude", "deep"), EVERYTHING - {one for one in EVERYTHING if one.startswith("src/deep/")}),
        (("--exclude", "target", "--exclude", "build"), {one for one in EVERYTHING if one[0] in "as"}),
        (("--exclude", "src/**"), {one for one in EVERYTHING if not one.startswith("src/")}),
        (("--exclude", "src/**/new.?"), EVERYTHING - {"src/deep/new.c", "src/deep/new.o"}),
        (("--exclude", "*"), set()),
        (("--exclude", "nothing"), EVERYTHING),
        (("--exclude", "*.o", "--include", "new.o"), EVERYTHING - OBJECTS | {"src/deep/new.o"}),
        (("--exclude", "src", "--include", "src/deep"), {one for one in EVERYTHING if one != "src/a.o"}),
        (("--include", "*.c"), {"a.c", "src/deep/new.c"}),
        (("--include", "src/deep", "--include", "x"), {"src/deep/b.o", "src/deep/new.c", "src/deep/new.o", "build/x"}),
        (("--include", "target"), {"target", "target/obj", "target/obj/c.o", "target/main"}),
    ],
)
def test_what_a_pattern_means(work: Cow, options: tuple[str, ...], left: set[str]) -> None:
    """A name anywhere, or a path from the top; what is in an excluded directory is excluded."""
    work.sh(BUILD)
    assert set(work.changes()) == EVERYTHING
    assert set(work.changes(*options)) == left
    told = work("diff", "--name-only", *options).out.split()
    assert {os.path.relpath(path, work.tree) for path in told} == left


@BACKENDS
def test_what_is_excluded_is_not_committed(work: Cow, project: Path, backend: str) -> None:
    """It is still a change, and shown in the next view."""
    before = files(project)
    work.sh(BUILD, "--cow-backend", backend)
    planned = work("commit", "--dry-run", "--exclude", "*.o")
    assert files(project) == before and ".o" not in planned.out
    committed = work("commit", "--exclude", "*.o")
    assert planned.out.splitlines()[-1] == committed.out.strip().replace("committed", "would commit")
    assert {path: text for path, text in files(project).items() if text != before.get(path)} == dict.fromkeys(
        ("a.c", "src/deep/new.c", "target/main", "build/x"), "new\n"
    )
    assert (project / "src/a.o").read_text() == "src/a.o\n" and not list((project / "target/obj").iterdir())
    assert set(work.changes()) == OBJECTS
    shown = work.sh("cat a.o src/deep/*.o target/obj/c.o; test ! -e src/a.o", "--cow-backend", backend)
    assert shown.out == "new\n" * 4


@BACKENDS
def test_two_parts_are_the_whole(work: Cow, viewfs: Viewfs, project: Path, backend: str) -> None:
    """A commit with a filter and then one without make the same tree as one commit."""
    other = Cow(viewfs, project.with_name("other"), name="other")
    subprocess.run(["cp", "-a", project, other.tree], check=True)
    script = BUILD + "chmod 750 target/obj; chmod 640 a.c a.o; find . -type f -exec touch -d 2021-02-03 {} +"
    for cow in (work, other):
        cow.sh(script, "--cow-backend", backend)
    other("commit")
    work("commit", "--exclude", "*.o", "--exclude", "build")
    work("commit", "--exclude", "x", "--exclude", "src/deep")
    work("commit")
    assert snapshot(project, times=False) == snapshot(other.tree, times=False)
    assert {path: os.stat(project / path).st_mtime_ns for path in files(project)} == {
        path: os.stat(other.tree / path).st_mtime_ns for path in files(other.tree)
    }
    assert nothing_left(viewfs)


@pytest.mark.parametrize("options", [("--exclude", "*.o"), ("--exclude", "src", "--exclude", "target/m*")])
def test_dry_run_tells_what_a_commit_does(work: Cow, project: Path, options: tuple[str, ...]) -> None:
    before = files(project)
    work.sh(BUILD)
    left = set(work.changes(*options))
    told = work("commit", "--dry-run", *options).out.splitlines()
    assert files(project) == before
    assert {os.path.relpath(line.split()[1], project) for line in told[:-1]} == left
    done = work("commit", "--json", *options).json["changes"]
    assert {os.path.relpath(row["path"], project) for row in done} == left
    after = files(project)
    changed = {path for path in {*before, *after} if after.get(path) != before.get(path)}
    assert changed == left - {"target", "target/obj"} and set(work.changes()) == EVERYTHING - left


def test_paths_and_patterns_together(work: Cow, project: Path) -> None:
    """Both must have it."""
    work.sh(BUILD)
    assert work("commit", "--exclude", "*.o", project / "src", project / "target").code == 0
    assert (project / "src/deep/new.c").exists() and (project / "target/main").exists()
    assert set(work.changes()) == OBJECTS | {"a.c", "build/x"}
    assert work("commit", "--exclude", "*", check=False).out == ""


@BACKENDS
def test_what_is_included_alone(work: Cow, project: Path, backend: str) -> None:
    """New files beside it, and new directories that do not lead to it, are left where they are."""
    before = files(project)
    script = "mkdir target; echo s > target/key; echo n > src/no; echo y > src/yes"
    script += "; mkdir -p new/er; echo y > new/er/yes; echo n > new/no"
    work.sh(script, "--cow-backend", backend)
    would = work("commit", "--dry-run", "--include", "yes").out
    assert "2 added" in would
    assert work("commit", "--include", "yes").out == "committed: 2 added\n"
    assert files(project) == before | {"src/yes": "y\n", "new/er/yes": "y\n"} and not (project / "target").exists()
    assert work("commit", "--exclude", "key", "--include", "er").code == 0
    assert {"target/key", "src/no", "new/no"} >= set(work.changes()) - {"target"} >= {"target/key"}


@BACKENDS
def test_a_conflict_is_one_after_other_parts_have_been_committed(work: Cow, project: Path, backend: str) -> None:
    """By a pattern, or because they could not be."""
    work.sh("echo in > a.o; echo in > src/a.o; echo n > new.c; echo n > src/new.c", "--cow-backend", backend)
    for name in ("a.o", "src/a.o"):
        (project / name).write_text("theirs\n")
    assert work("commit", "--exclude", "*.o").out == "committed: 2 added\n"
    refused = work("commit", check=False)
    assert refused.code == 1 and "changed outside too" in refused.err
    assert {(project / name).read_text() for name in ("a.o", "src/a.o")} == {"theirs\n"}


def test_times_of_directories_survive_a_part(work: Cow, project: Path) -> None:
    """Also where what was committed is taken out of the layer: the rest of it is still in the directory."""
    work.sh("echo n > src/new; echo n > src/new.o; mkdir made; echo n > made/x.o; touch -d @1500000000 src made")
    assert work("commit", "--exclude", "*.o").code == 0
    assert work.sh("stat -c %Y src").out == "1500000000\n"
    assert work("commit").code == 0
    assert (project / "src").stat().st_mtime == (project / "made").stat().st_mtime == 1500000000


def test_a_directory_with_an_excluded_part_can_not_go(work: Cow, project: Path) -> None:
    before = files(project)
    work.sh("rm -r src/deep")
    for dry in ([], ["--dry-run"]):
        refused = work("commit", *dry, "--exclude", "*.o", check=False)
        assert refused.code != 0 and refused.out == "" and refused.err.count("\n") == 1, refused
        assert "src/deep" in refused.err and "b.o" in refused.err
    work("commit", "--exclude", "deep")
    assert files(project) == before
    assert work("commit", "--exclude", "build").out == "committed: 3 deleted\n"
    assert not (project / "src/deep").exists()


def test_a_directory_that_became_a_file(work: Cow, project: Path) -> None:
    """What was in it is gone with it, and may not be excluded."""
    before = snapshot(project)
    work.sh("rm -r build; echo file > build")
    refused = work("commit", "--exclude", "y", check=False)
    assert refused.code != 0 and refused.err.count("\n") == 1 and "build/keep/y" in refused.err
    assert snapshot(project) == before
    work("commit", "--exclude", "*.o")
    assert (project / "build").read_text() == "file\n"


def test_in_a_view_that_runs(open_view: OpenView, project: Path) -> None:
    """What was left out is changed again, committed, and left out once more."""
    view = open_view("--cow", project)
    for number in range(3):
        view.sh(f"cd {project}; echo {number} > a.c; echo {number} > a.o; mkdir n{number}; echo > n{number}/x.o")
        view("commit", "--exclude", "*.o")
        assert (project / "a.c").read_text() == f"{number}\n" and (project / "a.o").read_text() == "a.o\n"
        assert (project / f"n{number}").is_dir() and not (project / f"n{number}/x.o").exists()
        told = view("diff", "--name-only").out.split()
        assert told == [f"{project}/a.o", *(f"{project}/n{one}/x.o" for one in range(number + 1))]
        view.sh(f"cd {project}; cat a.o n{number}/x.o")
    view("commit")
    assert (project / "a.o").read_text() == "2\n" and (project / "n1/x.o").exists()


def test_a_name_of_a_file_that_is_left_out(work: Cow, project: Path) -> None:
    """Of two names of a file one is committed; the other becomes another name of it when it is."""
    work.sh("echo both > new.c; ln new.c new.o; ln src/a.c other.o")
    work("commit", "--exclude", "*.o")
    assert (project / "new.c").read_text() == "both\n" and not (project / "new.o").exists()
    work("commit")
    assert (project / "new.o").read_text() == "both\n" and (project / "other.o").read_text() == "src/a.c\n"


def test_filters_go_with_no_new_image(work: Cow, viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    work.sh(BUILD)
    refused = work("commit", "--exclude", "*.o", "--to", tmp_path / "new.tar", project, check=False)
    assert refused.code == 2 and refused.err.count("\n") == 1 and not (tmp_path / "new.tar").exists()


# Of `viewfs run`: directories that stay as they are.


@BACKENDS
def test_excluded_directories_stay_as_they_are(viewfs: Viewfs, project: Path, backend: str) -> None:
    """What is written in them is written through."""
    options = ("--name", "work", "--cow", project, "--cow-backend", backend, "--exclude", "build")
    script = f"cd {project}; echo view > a.c; echo through > build/x; rm build/keep/y; echo new > build/new"
    viewfs.sh(*options, script=script)
    assert (project / "build/x").read_text() == "through\n" and (project / "build/new").read_text() == "new\n"
    assert (project / "a.c").read_text() == "a.c\n" and not (project / "build/keep/y").exists()
    assert viewfs("diff", "--session", "work", "--name-only").out == f"{project}/a.c\n"
    viewfs.sh(*options, script=f"cd {project}; cat a.c build/x; test -e build/new; echo once more > build/x")
    viewfs("commit", "--session", "work")
    assert (project / "a.c").read_text() == "view\n" and (project / "build/x").read_text() == "once more\n"


@BACKENDS
def test_directories_by_name_anywhere(viewfs: Viewfs, project: Path, backend: str) -> None:
    for place in ("node", "src/node", "src/deep/node"):
        (project / place).mkdir()
    script = f"cd {project}; for d in . src src/deep; do echo in > $d/node/file; echo in > $d/file; done"
    viewfs.sh("--cow", project, "--cow-backend", backend, "--exclude", "node", script=script)
    assert {str(path.relative_to(project)) for path in project.rglob("file")} == {
        "node/file", "src/node/file", "src/deep/node/file"
    }  # fmt: skip


def test_all_but_what_is_included_stays(viewfs: Viewfs, project: Path) -> None:
    """--include alone: of the directories, only those are copy-on-write."""
    script = f"cd {project}; echo view > src/a.c; echo view > src/deep/b.c; echo through > build/x"
    viewfs.sh("--cow", project, "--include", "src", script=script)
    assert (project / "src/a.c").read_text() == "src/a.c\n" and (
        project / "src/deep/b.c"
    ).read_text() == "src/deep/b.c\n"
    assert (project / "build/x").read_text() == "through\n"


# --ask


def ask(viewfs: Viewfs, project: Path, script: str, *options: str | Path, check: bool = True) -> Result:
    return viewfs.sh("--cow", project, "--ask", *options, script=f"cd {project}; {script}", check=check)


def nothing_left(viewfs: Viewfs) -> bool:
    return not (viewfs.state / "viewfs").exists() or not os.listdir(viewfs.state / "viewfs")


@BACKENDS
def test_the_answer_is_yes(viewfs: Viewfs, project: Path, backend: str) -> None:
    result = ask(viewfs, project, BUILD + "exit 7", "-y", "--cow-backend", backend, check=False)
    assert result.code == 7 and "committed: " in result.err and f"{project}/target/main" in result.err
    assert result.out == "", "that is the command's"
    assert (project / "a.c").read_text() == "new\n" and not (project / "src/a.o").exists()
    assert nothing_left(viewfs)


@BACKENDS
def test_the_answer_is_no(viewfs: Viewfs, project: Path, backend: str) -> None:
    before = snapshot(project)
    result = ask(viewfs, project, BUILD + "exit 7", "-n", "--cow-backend", backend, check=False)
    assert result.code == 7 and f"{project}/target/main" in result.err and result.out == ""
    assert snapshot(project) == before and nothing_left(viewfs)


@pytest.mark.parametrize("answer", ["-y", "-n"])
def test_there_is_nothing_to_ask(viewfs: Viewfs, project: Path, answer: str) -> None:
    before = snapshot(project)
    for script in ("exit 3", "echo x > new; rm new; exit 3"):
        result = ask(viewfs, project, script, answer, check=False)
        assert result.code == 3 and "ommit" not in result.out + result.err, result
    assert snapshot(project) == before and nothing_left(viewfs)


def test_a_conflict_is_told_and_nothing_is_lost(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    """Somebody writes outside while the command runs."""
    os.mkfifo(tmp_path / "go")
    command = ["viewfs", "run", "--cow", project, "--ask", "-y", "--", "sh", "-c", f"echo in > a.c; cat {tmp_path}/go"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=viewfs.environment, cwd=project) as process:
        with open(tmp_path / "go", "w"):
            (project / "a.c").write_text("outside\n")
        _out, err = process.communicate()
    assert process.returncode == 1 and f"{project}/a.c: it was changed outside too" in err
    assert (project / "a.c").read_text() == "outside\n"
    (left,) = viewfs("ps", "--json").json["ended"]
    viewfs("commit", "--force", "--session", left["name"])
    assert (project / "a.c").read_text() == "in\n" and nothing_left(viewfs)


@pytest.mark.parametrize(
    "options",
    [("-y",), ("-n",), ("--ask",), ("--ask", "--cow", ".", "--name", "n"), ("--ask", "--cow", ".", "--keep")],
)
def test_what_does_not_go_together(viewfs: Viewfs, project: Path, options: tuple[str, ...]) -> None:
    refused = viewfs("run", *options, "--", "touch", project / "ran", check=False)
    assert refused.code == 2 and refused.err.count("\n") == 1 and not (project / "ran").exists()


@pytest.fixture
def terminal(viewfs: Viewfs, project: Path) -> Iterator[Callable[..., pexpect.spawn[str]]]:
    """Start `viewfs` on a terminal, in the project."""
    started: list[pexpect.spawn[str]] = []

    def start(*arguments: str) -> pexpect.spawn[str]:
        environment = viewfs.environment | {"TERM": "dumb"}
        child = pexpect.spawn(
            "viewfs", list(arguments), env=environment, cwd=str(project), encoding="utf-8", timeout=SECONDS
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


QUESTION = r"Commit these changes\? "


@pytest.mark.parametrize(("answer", "kept"), [("y", True), ("yes", True), ("n", False), ("", False)])
def test_somebody_answers(
    terminal: Callable[..., pexpect.spawn[str]], viewfs: Viewfs, project: Path, answer: str, kept: bool
) -> None:
    run = terminal("run", "--cow", ".", "--ask", "--", "sh", "-c", "echo in > a.c; exit 5")
    run.expect(r"/a\.c")
    run.expect(QUESTION)
    assert (project / "a.c").read_text() == "a.c\n", "it is asked before anything is done"
    run.sendline(answer)
    run.expect(pexpect.EOF)
    run.wait()
    assert run.exitstatus == 5
    assert (project / "a.c").read_text() == ("in\n" if kept else "a.c\n") and nothing_left(viewfs)


def test_it_is_asked_until_it_is_answered(terminal: Callable[..., pexpect.spawn[str]], project: Path) -> None:
    run = terminal("run", "--cow", ".", "--ask", "--", "sh", "-c", "read word; echo $word > a.c")
    run.sendline("typed")
    run.expect(QUESTION)
    run.sendline("perhaps")
    run.expect(QUESTION)
    run.sendline("y")
    run.expect("committed: 1 changed")
    run.expect(pexpect.EOF)
    assert (project / "a.c").read_text() == "typed\n"


def test_no_question_without_changes(terminal: Callable[..., pexpect.spawn[str]], viewfs: Viewfs) -> None:
    run = terminal("run", "--cow", ".", "--ask", "--", "sh", "-c", "cat a.c > /dev/null; exit 4")
    run.expect(pexpect.EOF)
    assert "ommit" not in str(run.before)
    run.wait()
    assert run.exitstatus == 4 and nothing_left(viewfs)


@pytest.mark.parametrize("how", ["ctrl-d", "hang-up", "killed"])
def test_nobody_answers(terminal: Callable[..., pexpect.spawn[str]], viewfs: Viewfs, project: Path, how: str) -> None:
    """Nothing is committed, and nothing is lost."""
    before = snapshot(project)
    run = terminal("run", "--cow", ".", "--ask", "--", "sh", "-c", "echo in > a.c; rm a.o")
    run.expect(QUESTION)
    if how == "ctrl-d":
        run.sendeof()
    elif how == "killed":
        run.kill(signal.SIGKILL)
    if how == "hang-up":
        run.close()
    else:
        run.expect(pexpect.EOF)
        run.wait()
    assert how != "ctrl-d" or run.exitstatus == 130
    assert snapshot(project) == before
    (left,) = viewfs("ps", "--json").json["ended"]
    assert left["paths"] == [str(project)]
    viewfs("commit", "--session", left["name"])
    assert (project / "a.c").read_text() == "in\n" and not (project / "a.o").exists() and nothing_left(viewfs)


def test_the_terminal_goes_while_the_command_runs(
    terminal: Callable[..., pexpect.spawn[str]], viewfs: Viewfs, project: Path
) -> None:
    """Its work is there to be looked at."""
    before = snapshot(project)
    run = terminal("run", "--cow", ".", "--ask", "--", "sh", "-c", "echo in > a.c; echo ready; exec sleep 1000")
    run.expect("ready")
    run.close()
    left = wait_until(lambda: viewfs("ps", "--json").json["ended"], "the view has ended")
    assert snapshot(project) == before
    assert viewfs("diff", "--session", left[0]["name"], "--name-only").out == f"{project}/a.c\n"
    viewfs("forget", left[0]["name"])
    assert nothing_left(viewfs)


def test_a_module_in_the_tree_is_not_run(viewfs: Viewfs, project: Path, tmp_path: Path) -> None:
    """Python takes what lies in the working directory for one of its own, if it is let."""
    for name in ("click", "json", "viewfs", "subprocess"):
        (project / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command = (
        f"cd {project}; viewfs run --cow . --ask -y -- sh -c 'echo new > a.c'; viewfs run --name n --cow . -- touch x"
    )
    done = subprocess.run(
        ["sh", "-ec", f"{command}; viewfs commit --session n --to {tmp_path}/made.ext4"],
        env=viewfs.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert not (tmp_path / "ran").exists() and (project / "a.c").read_text() == "new\n"


# What people do with `try`.


def test_try_ignoring_and_answering(viewfs: Viewfs, project: Path) -> None:
    """`try -y CMD`, `try -n CMD`."""
    for answer, text in (("-n", "a.c\n"), ("-y", "changed\n")):
        viewfs("run", "--cow", project, "--ask", answer, "--", "sh", "-c", f"echo changed > {project}/a.c")
        assert (project / "a.c").read_text() == text


def test_what_is_included_below_what_stays(viewfs: Viewfs, project: Path) -> None:
    """The directories that lead to it are copy-on-write, and no others."""
    options = ("--name", "n", "--cow", project, "--exclude", "build", "--include", "build/keep")
    (project / "build/other").mkdir()
    viewfs.sh(*options, script=f"cd {project}; echo w > build/keep/y; echo w > build/other/z; echo w > a.c")
    assert (project / "build/keep/y").read_text() == "build/keep/y\n" and (project / "a.c").read_text() == "a.c\n"
    assert (project / "build/other/z").read_text() == "w\n"


def test_nothing_differs_in_the_end(viewfs: Viewfs, project: Path) -> None:
    script = f"chmod 600 {project}/a.c; chmod 644 {project}/a.c"
    (project / "a.c").chmod(0o644)
    result = viewfs("run", "--cow", project, "--ask", "--", "sh", "-c", script)
    assert result.out == "" and result.err == ""
    assert viewfs("ps", "--json").json["ended"] == [] and not (viewfs.state / "viewfs").exists()


def test_ctrl_c_is_no_answer(terminal: Callable[..., pexpect.spawn[str]], viewfs: Viewfs, project: Path) -> None:
    child = terminal("run", "--cow", str(project), "--ask", "--", "sh", "-c", f"echo n > {project}/new")
    child.expect("Commit these changes")
    child.sendintr()
    child.expect("neither committed nor discarded")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130 and not (project / "new").exists()
    (ended,) = viewfs("ps", "--json").json["ended"]
    viewfs("forget", ended["name"])
