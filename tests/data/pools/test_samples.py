# SPDX-License-Identifier: Apache-2.0
import doctest
import io
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from recipes_lib.data.pools import samples
from recipes_lib.data.pools.samples import Entry, Fault, Remark, entries

UID = "139e4a9b22a614771f06c700a8ebe150"


def png(side: int = 4) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 10, 10)).save(file, "png")
    return file.getvalue()


def sample(number: int, **changes: bytes | None) -> list[tuple[str, bytes]]:
    """Members of a good sample; ``txt=None`` leaves a member out."""
    parts = {"png": png(), "txt": b"a red square", "json": b'{"uid": "%032x", "width": 4}' % number, **changes}
    return [(f"{number:06d}.{suffix}", data) for suffix, data in parts.items() if data is not None]


def shard(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def good_and_bad(path: Path) -> tuple[list[str], list[Fault]]:
    found = list(entries(path))
    faults = [entry for entry in found if isinstance(entry, Fault)]
    return [entry.key for entry in found if isinstance(entry, Entry)], faults


def test_samples_come_in_order_with_text_uid_and_what_else_is_known(tmp_path):
    first, second = entries(shard(tmp_path / "a.tar", [*sample(7), *sample(3, txt="ein grüner Krug".encode())]))
    assert (first.key, first.uid, first.text, first.extra) == ("000007", f"{7:032x}", "a red square", {"width": 4})
    assert (second.key, second.text) == ("000003", "ein grüner Krug")


@pytest.mark.parametrize("kind", ["jpg", "jpeg", "JPG", "png", "webp"])
def test_every_image_type_is_known_and_other_files_are_passed_by(tmp_path, kind):
    members = [
        *sample(0, png=None),
        (f"000000.{kind}", png()),
        ("000000.npy", b"x"),
        ("README", b"x"),
        ("._a.txt", b""),
    ]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", members))
    assert (keys, faults) == (["000000"], [])


def test_names_may_begin_with_the_folder_that_tar_puts_there(tmp_path):
    members = [(f"./part/{name}", data) for name, data in sample(0)]
    folder = tarfile.TarInfo("./part")
    folder.type = tarfile.DIRTYPE
    assert good_and_bad(shard(tmp_path / "a.tar", [(folder, b""), *members])) == (["part/000000"], [])


@pytest.mark.parametrize(
    ("changes", "reason", "line"),
    [
        ({"txt": None}, "no text", "sample '000001' has no text"),
        ({"png": None}, "no image", "sample '000001' has no image"),
        (
            {"txt": None, "json": None},
            "no text",
            "sample '000001' has no text, as a .txt or as the caption of its JSON",
        ),
        ({"txt": b"caf\xe9"}, "text not UTF-8", "the text of sample '000001' is not UTF-8 at byte 3"),
        ({"txt": b"a" * (1 << 20) + b"a"}, "text too large", "has 1,048,577 bytes; at most 1,048,576 are read"),
        ({"json": b"{"}, "damaged JSON", "the JSON of sample '000001' is no object"),
        ({"json": b"[" * 100_000}, "damaged JSON", "the JSON of sample '000001' is no object"),
        ({"json": b"[1]"}, "damaged JSON", "the JSON of sample '000001' is no object"),
        ({"json": b'{"uid": "%s0"}' % UID.encode()}, "malformed uid", f"has uid '{UID}0'"),
        ({"json": b'{"uid": 12}'}, "malformed uid", "has uid 12"),
        ({"json": b'{"uid": "%032d\\n"}' % 0}, "malformed uid", r"0\\n'"),
        ({"json": b'{"uid": "%032x"}' % 2}, "duplicate uid", f"two samples have uid {2:032x}, the second is '000002'"),
    ],
)
def test_a_sample_that_is_not_in_order_is_named_and_the_others_come(tmp_path, changes, reason, line):
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", [*sample(0), *sample(1, **changes), *sample(2)]))
    assert [fault.reason for fault in faults] == [reason]
    assert line.replace("\\\\", "\\") in faults[0].line
    assert keys == (["000000", "000001"] if reason == "duplicate uid" else ["000000", "000002"])


def test_of_two_samples_with_one_key_the_first_counts(tmp_path):
    twice = [(name, data.replace(b"%032x" % 2, b"%032x" % 9)) for name, data in sample(2)]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", [*sample(2), *sample(1), *twice]))
    assert keys == ["000002", "000001"]
    assert faults == [Fault("duplicate key", "there are two samples '000002'")]
    keys, faults = good_and_bad(shard(tmp_path / "b.tar", [*sample(2), *twice]))  # side by side as well
    assert (keys, [fault.reason for fault in faults]) == (["000002"], ["duplicate key"])


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "/etc/evil.txt", "a/../../evil.txt", "..\\evil.txt", "a\nb.txt", "\udcff.txt"],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", [*sample(0), (name, b"x"), *sample(1)]))
    assert keys == ["000000", "000001"]
    assert [fault.reason for fault in faults] == ["unsafe member"]
    assert repr(name) in faults[0].line
    assert ("is not UTF-8" in faults[0].line) == (name == "\udcff.txt")
    assert "\n" not in faults[0].line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_and_never_followed(tmp_path, kind):
    members = [*sample(0), (link("000001.txt", kind), b""), *sample(1, txt=None)]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", members))
    assert keys == ["000000"]
    assert [fault.reason for fault in faults] == ["unsafe member", "no text"]
    assert "'000001.txt' is refused: it is no plain file" in faults[0].line


def test_wherever_a_shard_is_cut_it_is_noticed_and_the_whole_samples_come(tmp_path):
    content = shard(tmp_path / "a.tar", [*sample(0), *sample(1)]).read_bytes()
    end, last = 6 * 1024, len(sample(0)[-1][1])  # six members of a header and a block each; then the end marker
    for cut in [0, 1, 511, 512, 600, *range(1024, end + 1, 256), 2560 + last - 1, 2560 + last, end + 512 - 1]:
        (tmp_path / "b.tar").write_bytes(content[:cut])
        keys, faults = good_and_bad(tmp_path / "b.tar")
        assert len(keys) == sum(cut >= first + 2560 + last for first in (0, 3072)), cut
        assert [fault.reason for fault in faults] == ["damaged shard"], cut
        named = f"its last whole sample is '{keys[-1]}'" if keys else "it has no whole sample"
        assert named in faults[0].line, cut


def test_a_broken_header_in_the_middle_is_noticed(tmp_path):
    content = bytearray(shard(tmp_path / "a.tar", [*sample(0), *sample(1), *sample(2)]).read_bytes())
    content[3072:3080] = b"\xff" * 8  # the name in the first header of the second sample: its checksum fails
    (tmp_path / "a.tar").write_bytes(content)
    keys, (fault,) = good_and_bad(tmp_path / "a.tar")
    assert keys == ["000000"]
    assert "it breaks off at byte 3,072 of 10,240; its last whole sample is '000000'" in fault.line


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 300, b"\x1f\x8b" * 600, b"x"])
def test_what_is_no_tar_file_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert [fault.reason for fault in good_and_bad(tmp_path / "a.tar")[1]] == ["damaged shard"]


def test_an_empty_archive_is_whole(tmp_path):
    assert good_and_bad(shard(tmp_path / "a.tar", [])) == ([], [])


def test_pairs_whose_names_have_dots_are_named_and_the_others_come(tmp_path):
    dotted = [(name.replace(".", ".final.", 1), data) for name, data in sample(1)]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", [*sample(0), *dotted, *sample(2)]))
    assert keys == ["000000", "000002"]
    assert [fault.reason for fault in faults] == ["dotted name"]
    assert "'000001.final' has a dot in its name, and a key ends at the first dot" in faults[0].line
    other = [(name.replace(".", ".other.", 1), data) for name, data in sample(1)]
    keys, faults = good_and_bad(shard(tmp_path / "b.tar", [*sample(1), *dotted, *other]))
    assert keys == ["000001"]
    assert [fault.reason for fault in faults] == ["dotted name"] * 2


def test_an_image_with_a_part_name_alone_is_no_image_and_is_named(tmp_path):
    members = [*sample(0, png=None), ("000000.input.jpg", png()), ("000001.seg.png", png())]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", members))
    assert keys == []
    assert [fault.reason for fault in faults] == ["no image", "no image"]
    assert "sample '000000' has no image: part 'input.jpg' is none, since a key ends at the first dot" in faults[0].line


def test_further_parts_beside_an_image_are_allowed(tmp_path):
    members = [*sample(0), ("000000.seg.png", png()), ("000000.info.json", b"{}"), *sample(1)]
    assert good_and_bad(shard(tmp_path / "a.tar", members)) == (["000000", "000001"], [])


def test_data_behind_the_end_of_a_tar_is_a_damaged_shard_after_the_samples_before_it(tmp_path):
    first, second = (shard(tmp_path / f"{i}.tar", [*sample(i), *sample(i + 10)]).read_bytes() for i in range(2))
    hole = bytes(50_000)
    for behind in (second, hole + second, hole + b"x"):
        (tmp_path / "a.tar").write_bytes(first + behind)
        keys, (fault,) = good_and_bad(tmp_path / "a.tar")
        assert keys == ["000000", "000010"]
        assert fault.reason == "damaged shard"
        assert "it ends at byte 6,144, and yet data follows at byte" in fault.line


def test_a_long_tail_of_zeros_is_remarked_on_and_the_padding_of_a_tar_is_not(tmp_path):
    content = shard(tmp_path / "a.tar", [*sample(0), *sample(1)]).read_bytes()
    for tail, remarks in ((0, []), (1, [Remark("long tail of zeros in a shard")])):
        (tmp_path / "b.tar").write_bytes(content + bytes(tail))
        assert [entry for entry in entries(tmp_path / "b.tar") if not isinstance(entry, Entry)] == remarks
    (tmp_path / "b.tar").write_bytes(content[: 6 * 1024 + 1024])  # two empty blocks alone, as some writers end
    assert [type(entry) for entry in entries(tmp_path / "b.tar")] == [Entry, Entry]


@pytest.mark.parametrize("facts", [None, b"{}", b'{"uid": null}'])
def test_a_sample_without_uid_has_none(tmp_path, facts):
    found = list(entries(shard(tmp_path / "a.tar", [*sample(0), *sample(1, json=facts), *sample(2)])))
    assert [entry.uid for entry in found] == [f"{0:032x}", None, f"{2:032x}"]


def test_a_caption_in_the_json_is_the_text_where_there_is_no_other(tmp_path):
    said = b'{"uid": "%032x", "caption": "ein Krug"}'
    members = [*sample(0, txt=None, json=said % 0), *sample(1, json=said % 1), *sample(2, txt=None)]
    first, second, third = entries(shard(tmp_path / "a.tar", members))
    assert (first.text, second.text) == ("ein Krug", "a red square")
    assert third.reason == "no text"


def test_members_that_do_not_stand_together_are_said_to_be_so_once_a_sample(tmp_path):
    a, b = sample(0), sample(1)
    members = [a[0], b[0], a[1], b[1], a[2], b[2], *sample(2)]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", members))
    assert keys == ["000002"]
    assert [fault.reason for fault in faults] == ["scattered sample"] * 2
    assert faults[0].line == "the members of sample '000000' do not stand together"
    assert "tar --sort=name" in faults[0].remedy


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3, 0), (1, 0, 2, 3)])
def test_two_images_for_one_key_are_named(tmp_path, order):
    members = [("000001.jpg", png()), *sample(1)]
    keys, faults = good_and_bad(shard(tmp_path / "a.tar", [*sample(0), *(members[i] for i in order), *sample(2)]))
    assert keys == ["000000", "000002"]
    assert [fault.reason for fault in faults] == ["two images"]
    assert "there are two images for sample '000001': 000001." in faults[0].line


def test_a_negative_size_does_not_lead_in_a_circle(tmp_path):
    header = bytearray(tarfile.TarInfo("000000.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    keys, faults = good_and_bad(tmp_path / "a.tar")
    assert (keys, [fault.reason for fault in faults]) == ([], ["damaged shard"])


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a huge image."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = b"".join(len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged image"),
        (b"no image", "damaged image"),
        (png()[:40], "damaged image"),
        (b"GIF89a" + bytes(40), "damaged image"),
        (bomb(10_000, 10_000), "image too large"),
        (bomb(100_000, 100_000), "image too large"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(data, reason):
    with pytest.raises(samples.FaultError) as caught:
        samples.decode(data, "sample 'a'")
    assert caught.value.fault.reason == reason
    assert "sample 'a'" in caught.value.fault.line


def test_the_example_holds():
    assert doctest.testmod(samples).failed == 0
