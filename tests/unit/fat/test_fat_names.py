"""Names and times of FAT, as Linux' vfat shows them with shortname=mixed and utf8.

Rules (Documentation/filesystems/vfat.rst, and what fs/fat does):

- A name is its long one where its slots are in front of its short one, complete, in order (the last part first, which
  is marked 0x40), at most 20, and with the checksum of the short name. Otherwise it is the short one, and the slots are
  not looked at. What is between the slots and the short name, such as a label or a deleted entry, ends them.
- A short name is shown as it is stored, with the letters of its base (0x08) or extension (0x10) small where Windows NT
  says so in byte 12. Spaces are only taken from the ends of both parts, the first byte 0x05 stands for 0xE5, and bytes
  are those of the code page.
- Labels (attribute 0x08) and deleted entries (0xE5) are not shown. Attribute 0x0F is a slot of a long name.
- Names are found whichever way their letters are written, by their long and by their short one. Dots at the end of a
  name that is looked for don't count; spaces do.
- Date and time are those of a clock on the wall; a date of 0 is 1980-01-01. Times of the last access have days only.
"""

from __future__ import annotations

import calendar
import datetime

import pytest

from tests.unit.fat.conftest import DAMAGE, Opened, Opener
from tests.unit.fat.fat_images import KINDS, mcopy, mkfs, run
from tests.unit.fat.fat_writer import (
    ARCHIVE,
    DIRECTORY,
    LABEL,
    LONG,
    FatWriter,
    Folder,
    dos,
    long_slots,
    short_slot,
)
from viewfs.modules.formats.fat.names import CODEPAGE
from viewfs.modules.formats.fat.times import TIME_ZONE, local_zone

SECOND = 1_000_000_000
#: A name that all images of these tests have behind what is tested: it is there whatever is in front of it.
LAST = "the last one.txt"


def opened(open_image: Opener, writer: FatWriter, **options: str) -> Opened:
    writer.root.file(LAST, b"last")
    return open_image(bytes(writer.data), **options)


@pytest.mark.parametrize(
    ("stored", "lower", "codepage", "shown"),
    [
        (b"README  TXT", 0x00, "437", "README.TXT"),
        (b"README  TXT", 0x18, "437", "readme.txt"),
        (b"README  TXT", 0x08, "437", "readme.TXT"),
        (b"README  TXT", 0x10, "437", "README.txt"),
        (b"README  TXT", 0xE7, "437", "README.TXT"),
        (b"readme  Txt", 0x00, "437", "readme.Txt"),
        (b"NOEXT      ", 0x18, "437", "noext"),
        (b"EIGHTCHATXT", 0x00, "437", "EIGHTCHA.TXT"),
        (b"EA DATA  SF", 0x00, "437", "EA DATA. SF"),
        (b"A B     C D", 0x00, "437", "A B.C D"),
        (b" LEAD   TXT", 0x00, "437", " LEAD.TXT"),
        (b"        TXT", 0x00, "437", ".TXT"),
        (b"\x05FILE   TXT", 0x00, "437", "σFILE.TXT"),
        (b"\x05FILE   TXT", 0x00, "850", "ÕFILE.TXT"),
        (b"\x05FILE   TXT", 0x18, "850", "õfile.txt"),
        (b"CAF\x90    TXT", 0x00, "437", "CAFÉ.TXT"),
        (b"CAF\x90    TXT", 0x00, "850", "CAFÉ.TXT"),
        (b"CAF\x90    TXT", 0x18, "850", "café.txt"),
        (b"\x8f\x90\x88     TXT", 0x00, "866", "ПРИ.TXT"),
        (b"\x93\xfa\x96{    TXT", 0x00, "932", "日本.TXT"),
        (b"\x82\xa0\x83A    \x88\xc0 ", 0x18, "932", "あア.安"),
    ],
)
def test_short_names(open_image: Opener, stored: bytes, lower: int, codepage: str, shown: str) -> None:
    writer = FatWriter(12)
    writer.root.file(None, b"content", short=stored, lower=lower)
    volume = opened(open_image, writer, codepage=codepage)
    assert volume.tree() == {shown: b"content", LAST: b"last"}
    assert volume.find(shown.upper()) == volume.find(shown.lower()) == volume.find(shown) is not None


@pytest.mark.parametrize(
    "stored", [b"AB\0CD   TXT", b"A\x01\x1f*?<>|TXT", b"..      TXT", b"A/B     TXT", b"A\\B     T:X"]
)
def test_odd_short_names_do_no_harm(open_image: Opener, stored: bytes) -> None:
    """Whatever they are shown as, they are found by it, and the rest is there."""
    writer = FatWriter(12)
    writer.root.file(None, b"content", short=stored)
    volume = opened(open_image, writer)
    assert volume.tree()[LAST] == b"last" and set(volume.errors().values()) <= DAMAGE
    assert set(volume.tree().values()) <= {b"content", b"last"}


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(b"A/B     TXT", "A\ufffdB.TXT"), (b"/       /  ", "\ufffd.\ufffd"), (b"A       /./", "A.\ufffd.\ufffd")],
)
def test_a_name_that_no_directory_can_have(open_image: Opener, stored: bytes, shown: str) -> None:
    """What it stands for can be had all the same, under another name."""
    writer = FatWriter(12)
    writer.root.file(None, b"content", short=stored)
    volume = opened(open_image, writer)
    assert volume.tree() == {shown: b"content", LAST: b"last"} and not volume.errors()


def test_a_name_three_times(open_image: Opener) -> None:
    """The first is found by it, whether the directory has been listed or not; the others have names of their own."""
    writer = FatWriter(12)
    for content in (b"first", b"second", b"third"):
        writer.root.file(None, content, short=b"SAME    TXT")
    volume = opened(open_image, writer)
    first = volume.find("SAME.TXT")
    assert volume.names() == ["SAME.TXT", "SAME.TXT~2", "SAME.TXT~3", LAST]
    assert volume.find("SAME.TXT") == volume.find("same.txt") == first
    assert volume.tree() == {"SAME.TXT": b"first", "SAME.TXT~2": b"second", "SAME.TXT~3": b"third", LAST: b"last"}


def test_bytes_that_the_code_page_has_not(open_image: Opener) -> None:
    writer = FatWriter(12)
    writer.root.file(None, b"content", short=b"A\xdbB     TXT")
    writer.root.file(None, b"other", short=b"A\xdeB     TXT")
    volume = opened(open_image, writer, codepage="874")
    assert len(volume.names()) == 3 and volume.tree()[LAST] == b"last"


S1, S2 = b"FIRST   TXT", b"SECOND  TXT"
LONG1 = "The first long name.txt"


def _first(*slots: bytes) -> list[bytes]:
    """Slots, and the short name behind them."""
    return [*slots, short_slot(S1)]


def _changed(slots: list[bytes], slot: int, place: int, value: int) -> list[bytes]:
    changed = bytearray(slots[slot])
    changed[place] = value
    return [*slots[:slot], bytes(changed), *slots[slot + 1 :]]


SLOTS = long_slots(LONG1, S1)
DELETED = b"\xe5" + short_slot(S2)[1:]
MAXIMAL = "m" * 251 + ".txt"
SLOT_CASES: dict[str, tuple[list[bytes], list[str]]] = {
    "right": (_first(*SLOTS), [LONG1]),
    "small letters are for short names": ([*SLOTS, short_slot(S1, lower=0x18)], [LONG1]),
    "13 units": (_first(*long_slots("thirteen.text", S1)), ["thirteen.text"]),
    "26 units": (_first(*long_slots("twenty-six units of utf-16", S1)), ["twenty-six units of utf-16"]),
    "255 units": (_first(*long_slots(MAXIMAL, S1)), [MAXIMAL]),
    "85 of three bytes": (_first(*long_slots("日" * 85, S1)), ["日" * 85]),
    "surrogates": (_first(*long_slots("a 😀 of two units", S1)), ["a 😀 of two units"]),
    "leading dots and spaces": (_first(*long_slots(" ..name", S1)), [" ..name"]),
    "first byte 0x05": (
        [*long_slots("ångström.txt", b"\x05NGST~1 TXT"), short_slot(b"\x05NGST~1 TXT")], ["ångström.txt"],
    ),
    "wrong checksum": (_first(*long_slots(LONG1, S1, sum_=0)), ["FIRST.TXT"]),
    "orphan of another name": ([*SLOTS, short_slot(S2)], ["SECOND.TXT"]),
    "checksums differ": (_first(*_changed(SLOTS, 1, 13, 0)), ["FIRST.TXT"]),
    "no mark of the last part": (_first(*_changed(SLOTS, 0, 0, 2)), ["FIRST.TXT"]),
    "a part is missing": (_first(SLOTS[0]), ["FIRST.TXT"]),
    "the last part is missing": (_first(SLOTS[1]), ["FIRST.TXT"]),
    "in the wrong order": (_first(*SLOTS[::-1]), ["FIRST.TXT"]),
    "a part twice": (_first(SLOTS[0], SLOTS[1], SLOTS[1]), ["FIRST.TXT"]),
    "21 parts": (_first(*long_slots("x" * 270, S1)), ["FIRST.TXT"]),
    "63 parts": (_first(*_changed(SLOTS, 0, 0, 0x7F)), ["FIRST.TXT"]),
    "a deleted part": (_first(*_changed(SLOTS, 1, 0, 0xE5)), ["FIRST.TXT"]),
    "a deleted first part": (_first(*_changed(SLOTS, 0, 0, 0xE5)), ["FIRST.TXT"]),
    "slots of a deleted name": ([*SLOTS, b"\xe5" + short_slot(S1)[1:], short_slot(S2)], ["SECOND.TXT"]),
    "a deleted name between": ([*SLOTS, DELETED, short_slot(S1)], ["FIRST.TXT"]),
    "a label between": ([*SLOTS, short_slot(b"LABEL      ", attributes=LABEL), short_slot(S1)], ["FIRST.TXT"]),
    "another name's before": ([*long_slots("orphan of some length that is longer", S2), *_first(*SLOTS)], [LONG1]),
    "half of another name's before": ([*long_slots("some other long name", S2)[:1], *_first(*SLOTS)], [LONG1]),
    "type and cluster don't count": (_first(*_changed(_changed(SLOTS, 0, 12, 7), 1, 27, 9)), [LONG1]),
    "label": ([short_slot(b"A LABEL    ", attributes=LABEL), *_first()], ["FIRST.TXT"]),
    "label and archive": ([short_slot(b"A LABEL    ", attributes=LABEL | ARCHIVE), *_first()], ["FIRST.TXT"]),
    "label and directory": ([short_slot(b"A LABEL    ", attributes=LABEL | DIRECTORY), *_first()], ["FIRST.TXT"]),
    "label with a long name": ([*SLOTS, short_slot(S1, attributes=LABEL), short_slot(S2)], ["SECOND.TXT"]),
    "deleted": ([DELETED, *_first()], ["FIRST.TXT"]),
    "nothing but spaces": ([short_slot(b" " * 11), *_first()], ["FIRST.TXT"]),
    "slots at the end": ([*_first(), *long_slots("orphan", S2)], ["FIRST.TXT"]),
    "a volume's own name": ([short_slot(b"MYLABEL    ", attributes=LABEL), short_slot(b"MYLABEL    ")], ["MYLABEL"]),
}  # fmt: skip


@pytest.mark.parametrize("where", ["root", "directory"])
@pytest.mark.parametrize("case", SLOT_CASES)
def test_slots(open_image: Opener, case: str, where: str) -> None:
    slots, shown = SLOT_CASES[case]
    writer = FatWriter(12)
    folder = writer.root if where == "root" else writer.root.folder("folder")
    folder.put(*slots)
    folder.file(LAST, b"last")
    volume = open_image(bytes(writer.data))
    assert volume.names("" if where == "root" else "folder") == [*shown, LAST]
    assert not volume.errors()


@pytest.mark.parametrize(
    "units",
    [
        "a\ud83d lone surrogate".encode("utf-16-le", "surrogatepass"),
        "\ude00\ud83d".encode("utf-16-le", "surrogatepass"),
        "a/b".encode("utf-16-le"),
        ".".encode("utf-16-le"),
        "..".encode("utf-16-le"),
        b"\0\0",
        "\x01 control\n".encode("utf-16-le"),
        b"\xff\xff" * 13,
    ],
)
def test_odd_long_names_do_no_harm(open_image: Opener, units: bytes) -> None:
    """They are shown in a way that leads to the file, or with their short name, or not; nothing else suffers."""
    writer = FatWriter(12)
    writer.root.file(units, b"content", short=S1)
    volume = opened(open_image, writer)
    assert volume.tree()[LAST] == b"last" and set(volume.errors().values()) <= DAMAGE
    assert set(volume.tree().values()) <= {b"content", b"last"}


LOOKUPS = {
    "A Long Name.txt": "long",
    "a long name.TXT": "long",
    "A Long Name.txt.": "long",
    "A Long Name.txt....": "long",
    "ALONGN~1.TXT": "long",
    "alongn~1.txt": "long",
    "A Long Name.txt ": None,
    "A Long Name": None,
    "A Long  Name.txt": None,
    "ALONGN~2.TXT": None,
    "ÄÖÜ é ñ.txt": "umlauts",
    "äöü É Ñ.TXT": "umlauts",
    "aou e n.txt": None,
    "ΣΊΣΥΦΟΣ": "greek",
    "привет": "cyrillic",
    "ПРИВЕТ": "cyrillic",
    "😀.TXT": "pair",
    "SHORT.TXT": "short",
    "Short.Txt": "short",
    "short.txt.": "short",
    "SHORT": None,
    "NOEXT": "noext",
    "noext.": "noext",
    "noext..": "noext",
    "folder/DEEP FILE": "deep",
    "FOLDER./deep file.": "deep",
    "S0000001": None,
    "A LABEL": None,
    "...": None,
    "x" * 255: None,
    "gone": None,
    "ONE OF 0x05": "0x05",
}


def _names() -> bytes:
    writer = FatWriter(12, label=b"A LABEL    ")
    root = writer.root
    root.file("A Long Name.txt", b"long", short=b"ALONGN~1TXT")
    root.file("äöü é Ñ.txt", b"umlauts")
    root.file("Σίσυφοσ", b"greek")
    root.file("Привет", b"cyrillic")
    root.file("😀.txt", b"pair")
    root.file("one of 0x05", b"0x05", short=b"\x05NEOF0~1   ")
    root.file(None, b"short", short=b"SHORT   TXT")
    root.file(None, b"noext", short=b"NOEXT      ")
    root.delete(root.file("gone", b"gone", short=b"GONE       "), 1)
    root.folder("Folder").file("Deep File", b"deep")
    return bytes(writer.data)


@pytest.mark.parametrize("wanted", LOOKUPS)
def test_lookups(open_image: Opener, wanted: str) -> None:
    volume = open_image(_names())
    found, expected = volume.find(wanted), LOOKUPS[wanted]
    if expected is None:
        assert found is None
    else:
        assert found is not None and volume.content(found) == expected.encode()


def test_lookups_of_what_is_no_name(open_image: Opener) -> None:
    volume = open_image(_names())
    for name in (b"\xff\xfe", b"\xc3", b"x" * 1000, b"\xed\xa0\x80", b"a\xff"):
        assert volume.system.lookup(volume.system.root, name) is None


def test_the_first_of_two_that_are_called_alike_is_found(open_image: Opener) -> None:
    writer = FatWriter(12)
    writer.root.file("Twice", b"one")
    writer.root.file("tWICE", b"two")
    volume = opened(open_image, writer)
    assert volume.names() == ["Twice", "tWICE", LAST]
    found = volume.find("TWICE")
    assert found is not None and volume.content(found) == b"one"


def test_names_that_are_alike_for_long(open_image: Opener) -> None:
    writer = FatWriter(12, root_slots=256)
    names = ["a" * length + end for length in (195, 200, 250) for end in ("1.txt", "2.txt")]
    for name in names:
        writer.root.file(name, name.encode())
    volume = opened(open_image, writer)
    assert volume.tree() == {name: name.encode() for name in names} | {LAST: b"last"}


def test_a_directory_of_many_clusters(open_image: Opener) -> None:
    """Also where the slots of one name are in two clusters that do not follow each other."""
    writer = FatWriter(16)
    folder: Folder = writer.root.folder("folder")
    names = [f"a name of a good many characters {number}" for number in range(500)]
    for name in names:
        folder.file(name, b"x")
    volume = opened(open_image, writer)
    assert volume.names("folder") == names and not volume.errors()
    assert volume.stat("folder").size % writer.cluster == 0


@pytest.mark.needs("mkfs.vfat", "mcopy")
def test_a_label_and_a_file_that_are_called_alike(open_image: Opener, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("label")
    (top / "MYLABEL").write_text("mine")
    image = mcopy(mkfs(top / "image", KINDS[3], label="MYLABEL"), top / "MYLABEL")
    assert open_image(image).tree() == {"MYLABEL": b"mine"}
    assert "MYLABEL" in run("mlabel", "-s", "-i", image)


def _utc(*when: int) -> int:
    return calendar.timegm(datetime.datetime(*when).timetuple()) * SECOND  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (dos(1980, 1, 1), _utc(1980, 1, 1)),
        (dos(2000, 2, 29, 23, 59, 58), _utc(2000, 2, 29, 23, 59, 58)),
        (dos(2024, 6, 30, 12, 34, 56), _utc(2024, 6, 30, 12, 34, 56)),
        (dos(2038, 1, 19, 3, 14, 8), _utc(2038, 1, 19, 3, 14, 8)),
        (dos(2048, 1, 2, 3, 4, 6), _utc(2048, 1, 2, 3, 4, 6)),
        (dos(2099, 1, 2, 3, 4, 6), _utc(2099, 1, 2, 3, 4, 6)),
        (dos(2100, 2, 28), _utc(2100, 2, 28)),
        (dos(2100, 3, 1), _utc(2100, 3, 1)),
        (dos(2106, 2, 7, 6, 28, 16), _utc(2106, 2, 7, 6, 28, 16)),
        (dos(2107, 12, 31, 23, 59, 58), _utc(2107, 12, 31, 23, 59, 58)),
        ((0, 0), _utc(1980, 1, 1)),
    ],
)
def test_times(open_image: Opener, stored: tuple[int, int], shown: int) -> None:
    writer = FatWriter(12)
    writer.root.file("file", modified=stored, read=stored[0])
    folder = writer.root.folder("folder")
    writer.patch(folder.entry.at + 22, "HH", stored[1], stored[0])  # type: ignore[union-attr]
    volume = opened(open_image, writer, tz="UTC")
    assert volume.stat("file").mtime_ns == volume.stat("folder").mtime_ns == shown
    assert volume.stat("file").atime_ns == shown - shown % (86400 * SECOND)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Auckland"])
def test_times_that_there_are_not(open_image: Opener, zone: str) -> None:
    writer = FatWriter(12, root_slots=128)
    for date in (0xFFFF, 0x0001, 0x01E0, 44 << 9 | 13 << 5 | 1, 44 << 9 | 2 << 5 | 31, 44 << 9):
        for time in (0xFFFF, 0, 31 << 11, 63 << 5, 31):
            name = f"{date:x} {time:x}"
            writer.root.file(name, modified=(date, time), created=(date, time), hundredths=255, read=date)
    volume = open_image(bytes(writer.data), tz=zone)
    assert len(volume.names()) == 30
    for name in volume.names():
        attributes = volume.stat(name)
        for shown in (attributes.mtime_ns, attributes.atime_ns, attributes.ctime_ns):
            assert _utc(1979, 12, 30) <= shown <= _utc(2109, 1, 1), name


def test_slots_are_no_entries() -> None:
    """What the writer of these tests makes of a name: a check of its own."""
    assert all(len(slot) == 32 and slot[11] == LONG for slot in SLOTS) and [slot[0] for slot in SLOTS] == [0x42, 1]


@pytest.mark.parametrize("wanted", ["straße.txt", "ﬁle.txt", "STRASSE.TXT"])
def test_one_letter_stands_for_one(open_image: Opener, wanted: str) -> None:
    writer = FatWriter(12)
    writer.root.file("strasse.txt", b"two letters")
    writer.root.file("file.txt", b"two letters")
    volume = opened(open_image, writer)
    assert (volume.find(wanted) is not None) == (wanted == "STRASSE.TXT")


@pytest.mark.parametrize("codepage", ["idna", "utf-7", "raw_unicode_escape", "hex", "no-such", "utf-16"])
def test_a_code_page_that_is_none(codepage: str) -> None:
    with pytest.raises(ValueError, match="a code page such as"):
        CODEPAGE.parse(codepage)


@pytest.mark.parametrize(
    ("zone", "hour"),
    [
        ("UTC", 12), ("UTC0", 12), (":UTC", 12), ("Asia/Tokyo", 3), (":/usr/share/zoneinfo/Asia/Tokyo", 3),
        ("JST-9", 3),
        ("<+03>-3", 9), ("CET-1CEST,M3.5.0,M10.5.0/3", 10), ("EST5EDT,M3.2.0,M11.1.0", 16), ("no zone at all", 12),
        ("+99999999999", 12), ("/etc/passwd", 12), ("\udcff", 12),
    ],
)  # fmt: skip
def test_what_the_environment_calls_a_zone(monkeypatch: pytest.MonkeyPatch, zone: str, hour: int) -> None:
    """12 o'clock by its clocks, of a day in summer."""
    monkeypatch.setenv("TZ", zone)
    noon, shown = _utc(2024, 6, 30, 12) // SECOND, _utc(2024, 6, 30, hour) // SECOND
    assert local_zone().to_utc(noon) == shown


@pytest.mark.parametrize(
    "zone", ["+99999999999", "+1:2:3", "+24:00", "+02:60", "+", "-:", "+１", "Nowhere/City", "JST-9x"]
)
def test_a_zone_that_is_none(zone: str) -> None:
    with pytest.raises(ValueError, match="local, UTC, a zone such as"):
        TIME_ZONE.parse(zone)
