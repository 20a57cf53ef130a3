"""Do a piece of work in a directory and print how many seconds it took: `work.py NAME DIRECTORY`.

Runs wherever it is measured: outside, in a view, on another overlay.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

#: What is done in the directory; what is printed is thrown away.
WORK = {
    "build": "make -s -C project clean all",
    "git clone": "git clone -q --no-hardlinks origin clone",
    "git gc": "git -C origin gc -q",
    "rm -r": "rm -r many",
    "chmod -R": "chmod -R go-w many",
    "append": "for f in many/1*/*; do echo x >> $f; done",
}


def main() -> None:
    """Measure one."""
    os.chdir(sys.argv[2])
    environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"}
    begun = time.perf_counter()
    subprocess.run(["bash", "-euc", WORK[sys.argv[1]]], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main()
