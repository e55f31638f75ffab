"""Archives of texts, by Python's own writers and by hand: read without writing, whatever a member is called."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib

import pytest

from isoform.data.records import location
from isoform.data.sources import load_source, read_records

FILES = {"b/two.md": "two", "a.txt": "one", "c.jsonl": '{"text": "three"}\n{"text": "four"}\n', "d.csv": "text\nfive\n"}
TEXTS = ["one", "two", "three", "four", "five"]


def zip_of(files, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content, **options)
    return buffer.getvalue()


def tar_of(files, **fields):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def texts_of(path):
    return [record["text"] for record in read_records(str(path))]


ARCHIVES = {
    "x.zip": zip_of(FILES),
    "x.tar": tar_of(FILES),
    "x.tar.gz": gzip.compress(tar_of(FILES)),
    "x.tgz": gzip.compress(tar_of(FILES)),
    "x.tar.bz2": bz2.compress(tar_of(FILES)),
    "x.tar.xz": lzma.compress(tar_of(FILES)),
    "x.txz": lzma.compress(tar_of(FILES)),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_are_read_as_a_folder_of_the_same_files(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(ARCHIVES[name])
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    records = read_records(str(path))
    assert [record["text"] for record in records] == TEXTS
    assert location(records[3], 0) == f"{path}, c.jsonl, line 2" and location(records[1], 0) == f"{path}, b/two.md"
    assert set(tmp_path.rglob("*")) == before, "nothing is written"
    for member, content in FILES.items():
        (tmp_path / "folder" / member).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / member).write_text(content)
    folder, archive = load_source(str(tmp_path / "folder")), load_source(str(path))
    assert folder.train == archive.train and folder.validation == archive.validation
    assert archive.sources[0].title == name


def test_an_archive_in_a_folder_is_read_with_the_rest(tmp_path):
    (tmp_path / "a.txt").write_text("zero")
    (tmp_path / "b.zip").write_bytes(zip_of({**FILES, "README.md": "card", "picture.png": b"x", ".hidden.txt": "no"}))
    with pytest.warns(UserWarning, match=r"1 file \(picture.png\) with other suffixes \(.png\).* about the data"):
        assert texts_of(tmp_path) == ["zero", *TEXTS]


@pytest.mark.parametrize("maker", [zip_of, tar_of], ids=["zip", "tar"])
def test_hostile_names_are_only_names(maker, tmp_path, monkeypatch):
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    names = [
        "../up.txt",
        "/etc/absolute.txt",
        "..\\back.txt",
        "a/../../b.txt",
        "x" * 200 + ".txt",
        "new\nline.txt",
        "\x1b[2J.txt",
    ]
    files = {name: f"text {i}" for i, name in enumerate(names)}
    (inside / "x.zip").write_bytes(maker(files))
    assert sorted(texts_of("x.zip")) == sorted(files.values())
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "side", "x.zip"]
    (inside / "x.zip").write_bytes(maker({"../up.csv": "a,b\nx,y\n"}))
    with pytest.raises(ValueError, match=r"x.zip, ../up.csv: which column"):
        texts_of("x.zip")


def test_links_and_devices_in_a_tar_are_left_aside(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    kinds = {
        "link.txt": tarfile.SYMTYPE,
        "hard.txt": tarfile.LNKTYPE,
        "dev.txt": tarfile.CHRTYPE,
        "pipe.txt": tarfile.FIFOTYPE,
    }
    buffer = io.BytesIO(tar_of({"a.txt": "one"}))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.warns(UserWarning, match=r"4 files \(link.txt, hard.txt, dev.txt, …\), links or encrypted"):
        assert texts_of(tmp_path / "x.tar") == ["one"]
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        archive.writestr(link, str(secret))
    with pytest.warns(UserWarning, match=r"1 file \(link.txt\), links or encrypted"):
        assert texts_of(tmp_path / "x.zip") == ["one"]


def test_encrypted_members_are_left_aside(tmp_path):
    data = bytearray(zip_of({"a.txt": "one", "b.txt": "two"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.warns(UserWarning, match=r"1 file \(a.txt\), links or encrypted"):
        assert texts_of(tmp_path / "x.zip") == ["two"]


def test_an_archive_without_texts_says_what_it_has(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"a.png": b"x", "inner.zip": zip_of(FILES)}))
    with pytest.raises(ValueError, match=r"archive .*x.zip has no .txt.* only 2 files \(a.png, inner.zip\) with other"):
        texts_of(tmp_path / "x.zip")
    (tmp_path / "y.zip").write_bytes(zip_of({"a.txt": "", "b.csv": " \n"}))
    with pytest.raises(ValueError, match=r"y\.zip is empty"):
        texts_of(tmp_path / "y.zip")


BOMBS = {
    "one.zip": lambda: zip_of({"a.txt": b"a" * (70 * 2**20)}),
    "many.zip": lambda: zip_of({f"{i}.txt": b"a" * 2**22 for i in range(20)}),
    "x.tar.gz": lambda: gzip.compress(tar_of({"a.txt": b"a" * (70 * 2**20)}), 6),
    "x.tar.xz": lambda: lzma.compress(tar_of({"a.txt": b"a" * (70 * 2**20)}), preset=0),
    "x.tar.bz2": lambda: bz2.compress(tar_of({"a.txt": b"a" * (70 * 2**20)}), 1),
    "overlap.zip": lambda: overlapping(400),
}


def overlapping(count):
    """A zip whose directory names the same compressed megabyte many times."""
    text = b"a" * 2**20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(text) + packer.flush()
    crc, sizes = zlib.crc32(text), (len(packed), len(text))
    name = b"0000.txt"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 33, crc, *sizes, len(name), 0) + name + packed
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 33, crc, *sizes, len(name), 0, 0, 0, 0, 0, 0) + name
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, len(local), 0)
    return local + entry * count + end


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(BOMBS[name]())
    with pytest.raises(
        ValueError, match=f"{name} (holds more than 100 times its own size|can't be read as an archive)"
    ):
        texts_of(tmp_path / name)


def test_declared_sizes_count_for_nothing(tmp_path):
    """Those of a zip's directory, of a tar's header, of its sparse members."""
    data = bytearray(zip_of({"a.txt": "x" * 100}))
    struct.pack_into("<L", data, data.index(b"PK\x01\x02") + 24, 2**31)
    (tmp_path / "x.zip").write_bytes(data)
    assert texts_of(tmp_path / "x.zip") == ["x" * 100]
    header = tarfile.TarInfo("a.txt")
    header.size = 2**40
    (tmp_path / "x.tar").write_bytes(header.tobuf() + b"x" * 512)
    with pytest.raises(ValueError, match="can't be read as an archive"):
        texts_of(tmp_path / "x.tar")
    header.size, header.pax_headers = (
        0,
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)},
    )
    (tmp_path / "s.tar").write_bytes(
        tar_of({"b.txt": "fine"})[:-10240] + header.tobuf(tarfile.PAX_FORMAT) + b"\0" * 1024
    )
    try:
        assert texts_of(tmp_path / "s.tar") == ["fine"]
    except (ValueError, UserWarning) as error:
        assert "s.tar" in str(error)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damage_anywhere_is_refused_or_harmless(name, tmp_path):
    """Each flipped byte and each cut: a ValueError that names the file, or texts."""
    data, draw = ARCHIVES[name], random.Random(0)
    for trial in range(120):
        damaged = bytearray(data[: draw.randrange(len(data))] if trial % 3 == 0 else data)
        if trial % 3 and damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        (tmp_path / name).write_bytes(damaged)
        try:
            texts_of(tmp_path / name)
        except (ValueError, UserWarning) as error:
            assert name in str(error), error


def test_texts_in_archives_are_utf8_with_the_offset(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"a.txt": b"abc\xff", "b.txt": "ok"}))
    with pytest.raises(ValueError, match=r"x.zip, a.txt is not UTF-8: byte 0xff at offset 3"):
        texts_of(tmp_path / "x.zip")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zip"]
