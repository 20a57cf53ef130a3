"""What the script `viewfs` has Python run without `site`. The package is found by the path of this file."""

import _signal  # type: ignore[import-not-found]
import os
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # until there is somebody to hear it
#: Variables that isolated mode (-I) ignores, and that the program heeds itself or can do without. Others change what
#: Python does.
_KNOWN = {
    "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONNOUSERSITE", "PYTHONHASHSEED", "PYTHONSAFEPATH",
    "PYTHONSTARTUP",
}  # fmt: skip


def _lies_where_python_looks(root: str) -> bool:
    """Is `root` a checkout, or among the packages of this very Python, and does PYTHONPATH lead to no other viewfs?"""
    if root.endswith("-packages") and os.path.basename(os.path.dirname(root)) != f"python3.{sys.version_info.minor}":
        return False
    for place in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if os.path.isdir(os.path.join(place, "viewfs")) and not os.path.samefile(place, root):
            return False
    return True


_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
if not _lies_where_python_looks(_root) or any(name[:6] == "PYTHON" and name not in _KNOWN for name in os.environ):
    if not _root.endswith("-packages"):
        os.environ["PYTHONPATH"] = f"{_root}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    os.execv(sys.executable, [sys.executable, "-P", "-m", "viewfs", *sys.argv[1:]])
sys.path.append(_root)
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))

try:
    with open("/proc/self/comm", "w") as _name:
        _name.write("viewfs")  # what ps and pgrep show of a script
except OSError:
    pass

from viewfs.cli.quick.door import main  # noqa: E402

main(sys.argv[1:])
