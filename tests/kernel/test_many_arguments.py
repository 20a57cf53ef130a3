"""Commands with so many arguments that no message of a session, and no name of a process, holds all of them."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import Viewfs

COUNTS = [5000, 20_000]


@pytest.mark.parametrize("count", COUNTS)
def test_run_and_enter(viewfs: Viewfs, count: int) -> None:
    numbers = [str(number) for number in range(count)]
    expected = " ".join(numbers) + "\n"
    assert viewfs("run", "--", "echo", *numbers).out == expected
    assert viewfs("run", "--", "true", *numbers).code == 0
    inner = "viewfs enter n -- echo $(seq 0 $1) | wc -w; viewfs at 0 -- echo $(seq 0 $1) | wc -w; viewfs ps | wc -l"
    out = viewfs("run", "--name", "n", "--", "sh", "-c", inner, "sh", str(count - 1), *numbers).out
    assert out.split() == [str(count), str(count), "2"]


def test_a_long_argument(viewfs: Viewfs) -> None:
    """As long as the kernel lets one be (MAX_ARG_STRLEN), and one byte more."""
    longest = "x" * (32 * 4096 - 1)
    assert viewfs("run", "--", "echo", longest).out == longest + "\n"
    inner = 'viewfs enter n -- sh -c "echo \\${#0}" "$1"'
    assert viewfs("run", "--name", "n", "--", "bash", "-c", inner, "bash", "y" * 100_000).out == "100000\n"
