"""Files appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sbldm.run.errors import DamagedError, DataError, OutputError, StateError, mendable
from sbldm.run.files import (
    atomic_path,
    clear_partial,
    make_folder,
    read_json,
    read_nifti,
    read_npz,
    read_rows,
    read_text,
    sha256,
    write_csv,
    write_json,
    write_nifti,
)


def everything(folder: Path) -> list[str]:
    """All that lies under a folder, hidden things too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_written_whole_with_its_ending(tmp_path):
    """The target appears at the end, under the temporary path's own name, and nothing else is left."""
    target = tmp_path / "new" / "case.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert temporary.name == target.name and temporary != target
        assert temporary.stat().st_dev == target.parent.stat().st_dev
        assert not [path for path in target.parent.iterdir() if not path.name.startswith(".")]
    assert target.read_bytes() == b"whole"
    assert everything(tmp_path) == ["new", "new/case.nii.gz"]


def test_scratch_elsewhere(tmp_path):
    """With `scratch` nothing but the finished file ever lies beside the target."""
    target = tmp_path / "imagesTr" / "a.txt"
    with atomic_path(target, scratch=tmp_path / "work") as temporary:
        temporary.write_text("whole")
        assert everything(target.parent) == []
        assert temporary.is_relative_to(tmp_path / "work")
    assert everything(tmp_path) == ["imagesTr", "imagesTr/a.txt", "work"]


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("problem", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3)])
def test_exception_inside(tmp_path, old, problem):
    """It comes through as it was; no target appears, an old one keeps its bytes, no temporary file stays."""
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)
    with pytest.raises(type(problem)) as caught, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise problem
    assert caught.value is problem
    assert everything(tmp_path) == (["a.txt"] if old else [])
    assert not old or target.read_text() == old


@pytest.mark.parametrize("old", [None, "old"])
def test_disk_full_while_writing(tmp_path, old):
    """The kernel's own "no space left" (of /dev/full) names the target and the mend; an old file is kept."""
    target = tmp_path / "a.txt"
    if old:
        target.write_text(old)
    message = r"a\.txt: cannot be written \(No space left.*free space"
    with pytest.raises(OutputError, match=message) as caught, atomic_path(target) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 100_000)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 5
    assert everything(tmp_path) == (["a.txt"] if old else [])
    assert not old or target.read_text() == old


def test_disk_full_while_flushing(tmp_path, monkeypatch):
    """The same when the disk first complains at the flush."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: write_json(target, {"new": 2}), lambda: write_csv(tmp_path / "b.csv", [{"new": 2}])):
        with pytest.raises(OutputError, match="No space left"):
            write()
    assert read_json(target) == {"old": 1}
    assert everything(tmp_path) == ["a.json"]


def test_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    """The file reaches the disk before its name does, and the name before the writer goes on."""
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: order.append(os.readlink(f"/proc/self/fd/{d}")) or fsync(d))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("rename") or replace(a, b))
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert order == [str(temporary), "rename", str(tmp_path)]


def test_folder_that_cannot_be(tmp_path):
    """A regular file in the way, for every kind of writer: one line that names the path."""
    (tmp_path / "file").write_text("in the way")
    for write in (
        lambda: make_folder(tmp_path / "file" / "run"),
        lambda: write_json(tmp_path / "file" / "run" / "a.json", {}),
        lambda: write_csv(tmp_path / "file" / "a.csv", [{"a": 1}]),
    ):
        with pytest.raises(OutputError, match=rf"^{tmp_path}/file(/run)?: cannot create this folder") as caught:
            write()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_read_only_folder(tmp_path, monkeypatch):
    """A file system that takes nothing (also from root): the error names the target, and the block is never entered."""

    def read_only(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", read_only)
    entered = False
    message = rf"^{tmp_path}/a\.txt: cannot be written \(Read-only file system\)"
    with pytest.raises(OutputError, match=message), atomic_path(tmp_path / "a.txt"):
        entered = True
    assert not entered and everything(tmp_path) == []


def test_target_is_a_folder(tmp_path):
    """A folder of the target's name is neither removed nor filled."""
    (tmp_path / "a.txt" / "inner").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"a\.txt: cannot be written"), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert everything(tmp_path) == ["a.txt", "a.txt/inner"]


def test_nothing_written_is_an_error(tmp_path):
    """A block that forgets to write does not pass for a finished file."""
    with pytest.raises(OutputError, match=r"a\.txt"), atomic_path(tmp_path / "a.txt"):
        pass
    assert everything(tmp_path) == []


def test_writers_at_the_same_time(tmp_path):
    """Eight threads that all stand inside their block at once, four on one target: every file whole, nothing left."""
    inside, failures = threading.Barrier(8), []

    def write(number: int) -> None:
        try:
            with atomic_path(tmp_path / f"{max(number, 4)}.txt") as temporary:
                temporary.write_text(str(number) * 1000)
                inside.wait(20)
                assert temporary.read_text() == str(number) * 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert everything(tmp_path) == ["4.txt", "5.txt", "6.txt", "7.txt"]
    assert (tmp_path / "4.txt").read_text() in {str(number) * 1000 for number in range(5)}
    assert all((tmp_path / f"{n}.txt").read_text() == str(n) * 1000 for n in (5, 6, 7))


def test_one_block_inside_another(tmp_path):
    """A sidecar written while its volume is still open does not take the volume's temporary file away."""
    with atomic_path(tmp_path / "outer.txt") as temporary:
        temporary.write_text("outer")
        write_json(tmp_path / "inner.json", {"a": 1})
        with pytest.raises(ValueError), atomic_path(tmp_path / "failed.txt"):
            raise ValueError
    assert everything(tmp_path) == ["inner.json", "outer.txt"]
    assert (tmp_path / "outer.txt").read_text() == "outer"


def test_killed_while_writing(tmp_path):
    """SIGKILL inside the block: no target, only a hidden rest, which `clear_partial` removes with nothing else."""
    kept = tmp_path / "deep" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("kept")
    code = (
        "import os, signal, sys; from pathlib import Path; from sbldm.run.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "deep" / "a.txt")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(kept.parent) if not name.startswith(".")] == ["kept.txt"]
    assert len(everything(tmp_path)) == 4  # deep, kept, the hidden folder and the half file in it
    clear_partial(tmp_path)
    assert everything(tmp_path) == ["deep", "deep/kept.txt"]
    clear_partial(tmp_path / "not there")


def test_contents(tmp_path):
    """JSON and CSV come back as they were; the hash is that of the bytes."""
    content = {"a": [1, 2.5, None], "b": {"c": "ä"}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    write_csv(tmp_path / "a.csv", [{"x": 1, "y": "a,b"}, {"x": 2, "y": ""}])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\r\n1,"a,b"\r\n2,\r\n'
    assert sha256(tmp_path / "a.csv") == hashlib.sha256((tmp_path / "a.csv").read_bytes()).hexdigest()
    write_csv(tmp_path / "empty.csv", [])
    assert (tmp_path / "empty.csv").read_text().strip() == ""


# --- reading ----------------------------------------------------------------------------------------------------------

READERS = {
    "json": lambda path, **more: read_json(path, {"a": [int]}, "make it", **more),
    "npz": lambda path, **more: read_npz(path, ("a",), "make it", **more),
    "csv": lambda path, **more: read_rows(path, {"a": int}, "make it", **more),
    "nii": lambda path, **more: read_nifti(path, "make it", **more),
}
WRONG = (b"", b"{", b"[]", b"null", b'"a"', b'{"a": 1}', b"a\n1.5\n", b"a,b\n1\n", b"\xff\xfe\x00", bytes(range(256)))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", WRONG)
def test_damaged(tmp_path, kind, content):
    """Whatever a file holds instead: one line that names it and the mend, and says nothing of libraries."""
    path = tmp_path / f"file.{kind}"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=rf"^{path}: damaged \(.*\); remove it and make it\.$") as caught:
        READERS[kind](path)
    assert caught.value.exit_code == 4 and "pickle" not in str(caught.value)
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(.*\); make it\.$"):
        READERS[kind](path, remove=False, error=DataError)


@pytest.mark.parametrize("kind", READERS)
def test_not_there_to_read(tmp_path, monkeypatch, kind):
    """Missing, a dangling link, a folder, no right: each is told as what it is, with what mends it."""
    path = tmp_path / f"file.{kind}"
    with pytest.raises(StateError, match=rf"^{path}: is missing; make it\.$"):
        READERS[kind](path)
    path.symlink_to(tmp_path / "nothing")
    with pytest.raises(StateError, match=r"is a link to nothing; make it"):
        READERS[kind](path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError, match=rf"^{path}: "):
        READERS[kind](path)
    path.rmdir()
    path.write_bytes(b"something")

    def denied(*arguments: object, **keywords: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("builtins.open", denied)
    monkeypatch.setattr("sbldm.run.files.nib.load", denied)
    with pytest.raises(StateError, match=r"cannot be read \(no permission\); give yourself the right .*chmod u\+rX"):
        READERS[kind](path)


def test_right_content(tmp_path):
    """Whole files come back; a float may be written as an int; a byte order mark does not matter."""
    (tmp_path / "a.json").write_text('{"a": 1, "b": {"x": [2]}, "more": null}')
    form = {"a": float, "b": {str: [int]}}
    assert read_json(tmp_path / "a.json", form) == {"a": 1, "b": {"x": [2]}, "more": None}
    write_csv(tmp_path / "a.csv", [{"a": 1, "b": "x,y"}])
    assert read_rows(tmp_path / "a.csv", {"a": int}) == [{"a": "1", "b": "x,y"}]
    (tmp_path / "a.txt").write_text("\ufeffä", encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == "ä"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "Read-only file system"),
        (errno.ENOSPC, "free space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "choose a shorter one"),
        (errno.EISDIR, "a folder of this name is in its place"),
        (errno.ENOTDIR, "a file stands where one of its folders should be"),
    ],
)
def test_what_the_system_refuses(tmp_path, number, said):
    """Each refusal has its own mend, when it is met while writing and when nobody expected it."""
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match=rf"a\.txt: cannot be written .*{said}"), atomic_path(path):
        raise OSError(number, os.strerror(number), str(path))
    known = mendable(OSError(number, os.strerror(number), str(path)))
    assert isinstance(known, OutputError) and said in str(known) and str(path) in str(known)
    if number == errno.EACCES:
        assert "free space" not in str(known)


def test_reading_inside_writing(tmp_path):
    """A file without the right to be read is not told as the one that is written meanwhile."""
    with pytest.raises(PermissionError), atomic_path(tmp_path / "out" / "a.txt"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "source.txt"))


def test_a_flipped_byte_in_a_compressed_image(tmp_path: Path) -> None:
    """Whatever the voxels look like: the checksum stands behind the last one, where nibabel stops before it."""
    voxels = np.random.default_rng(0).integers(0, 3, (20, 20, 20), np.uint8)
    path = tmp_path / "a.nii.gz"
    write_nifti(path, voxels, np.eye(4))
    whole = path.read_bytes()
    assert np.array_equal(np.asarray(read_nifti(path).dataobj), voxels)
    for place in range(30, len(whole) - 1, 97):  # the ten bytes at the start hold time and name
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"a\.nii\.gz: damaged"):
            read_nifti(path)
