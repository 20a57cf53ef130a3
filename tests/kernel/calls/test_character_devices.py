"""Programs that look whether a file is a character device, and find that emulated ones are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.conftest import View

OpenView = Callable[..., View]

DEVICE = """
import ctypes

from viewfs.modules.api import Module
from viewfs.modules.api.device import CharDevice, DeviceFile, DeviceModule
from viewfs.modules.api.ioctls import _IOR, ioctl
from viewfs.modules.api.nodes import ComputedFile, Directory, NodeFileSystem

class ChipInfo(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 32), ("label", ctypes.c_char * 32), ("lines", ctypes.c_uint32))

class Capability(ctypes.Structure):
    _fields_ = (("driver", ctypes.c_char * 16), ("card", ctypes.c_char * 32), ("bus_info", ctypes.c_char * 32),
                ("version", ctypes.c_uint32), ("capabilities", ctypes.c_uint32), ("device_caps", ctypes.c_uint32),
                ("reserved", ctypes.c_uint32 * 3))

class File(DeviceFile):
    @ioctl(_IOR(0xB4, 1, ChipInfo), ChipInfo)
    def chip(self, call, info):
        info.name, info.label, info.lines = b"gpiochip77", b"made of Python", 5

    @ioctl(_IOR("V", 0, Capability), Capability)
    def capability(self, call, info):
        info.driver, info.card, info.bus_info = b"viewfs", b"a camera of Python", b"nowhere"
        info.version, info.capabilities, info.device_caps = 0x60000, 0x85200001, 0x05200001

class Device(CharDevice):
    file = File

class Emulated(DeviceModule):
    name = "emulated"

    def open_devices(self, mounting):
        return Device()

class Sys(Module):
    name = "sys"

    def open(self, mounting):
        return NodeFileSystem(Directory({"gpiochip77": Directory({"dev": ComputedFile(lambda: "254:77\\n")})}))

class Uevent(Module):
    name = "uevent"

    def open(self, mounting):
        return NodeFileSystem(Directory({"uevent": ComputedFile(lambda: "MAJOR=81\\nMINOR=77\\nDEVNAME=video77\\n")}))
"""


@pytest.fixture
def view(open_view: OpenView, tmp_path: Path) -> View:
    (tmp_path / "device.py").write_text(DEVICE)
    return open_view("--calls=lstat")


def load(view: View, device: str, numbers: str) -> None:
    view("insmod", f"{view.viewfs.directory}/device.py:Emulated", device)
    assert view.sh(f"test -c {device}", check=False).code == 1
    view("insmod", "chardev", device, "-o", numbers)


def test_what_stat_says(view: View) -> None:
    load(view, "/dev/thing", "major=254,minor=77,mode=640")
    assert view.sh("test -c /dev/thing; stat -c '%F %t:%T %a' /dev/thing").out == "character special file fe:4d 640\n"
    lines = "import os,stat; f=os.open('/dev/thing',2); print(stat.S_ISCHR(os.fstat(f).st_mode), os.fstat(f).st_rdev)"
    assert view.sh(f'python3 -c "{lines}"').out == f"True {254 << 8 | 77}\n"
    assert view.sh("find /dev/thing -type c; ls -l /dev/thing | cut -c 1-10").out == "/dev/thing\ncrw-r-----\n"
    view("rmmod", "chardev")
    assert view.sh("stat -c %F /dev/thing").out == "regular empty file\n"
    refused = view("insmod", "chardev", check=False)
    assert refused.code == 2 and "insmod chardev /dev/NAME" in refused.err


def test_gpiodetect(view: View) -> None:
    """It compares the numbers with what /sys says."""
    load(view, "/dev/gpiochip77", "major=254,minor=77")
    view("insmod", f"{view.viewfs.directory}/device.py:Sys", "/sys/bus/gpio/devices")
    assert view.sh("gpiodetect").out == "gpiochip77 [made of Python] (5 lines)\n"


def test_v4l2_ctl(view: View) -> None:
    """It asks /sys what kind of device has these numbers."""
    load(view, "/dev/video77", "major=81,minor=77")
    view("insmod", f"{view.viewfs.directory}/device.py:Uevent", "/sys/dev/char/81:77")
    out = view.sh("v4l2-ctl -d /dev/video77 --info").out
    assert "a camera of Python" in out and "Driver name      : viewfs" in out


def test_nobody_outside_sees_it(view: View) -> None:
    load(view, "/dev/thing", "major=254,minor=77")
    assert subprocess.run(["test", "-e", "/dev/thing"], check=False).returncode == 1
