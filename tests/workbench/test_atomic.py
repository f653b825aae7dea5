"""Files and folders that are replaced whole: after kills, beside readers, when a write fails, and without a swap."""

import errno
import os

import pytest
from kills import at_line, killed, killed_at

from semid_lib.workbench import atomic

N_FILES = 2


@pytest.fixture(params=["exchange", "two renames"])
def target(request, tmp_path, monkeypatch):
    """A folder of the version "old", on a system with or without the exchange of two names."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write(tmp_path / "shop", "old")
    return tmp_path / "shop"


def write(folder, version):
    with atomic.fresh_folder(folder) as fresh:
        (fresh / "inner").mkdir()
        for at in range(N_FILES):
            (fresh / f"{at}.txt").write_text(version)
        (fresh / "inner" / "more.txt").write_text(version)


def versions(folder):
    """The versions that the files are of; all files must be there."""
    files = [*(folder / f"{at}.txt" for at in range(N_FILES)), folder / "inner" / "more.txt"]
    return {file.read_text() for file in files}


def test_after_a_kill_the_folder_is_the_old_or_the_new_one_and_the_next_writer_tidies_up(target):
    line, finished = 0, False
    while not finished:
        before, line = versions(target), line + 5
        finished = killed_at(lambda new=str(line): write(target, new), line, atomic)
        assert versions(atomic.settled(target)) in ([{str(line)}] if finished else [before, {str(line)}])
    write(target, "last")
    assert versions(target) == {"last"}
    assert [path.name for path in target.parent.iterdir()] == ["shop"]


def test_a_kill_between_two_renames_leaves_the_old_folder_to_be_found(target, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    rename = type(target).rename

    def dies(path, to):
        if to == target and path.suffix == ".partial" and not target.exists():
            os._exit(0)
        return rename(path, to)

    def work():
        monkeypatch.setattr(type(target), "rename", dies)
        write(target, "new")

    assert killed(work)
    assert not target.exists()
    assert versions(atomic.settled(target)) == {"old"}
    write(target, "new")
    assert versions(target) == {"new"} and [path.name for path in target.parent.iterdir()] == ["shop"]


def test_a_reader_at_any_moment_of_a_writer_finds_one_whole_folder(target):
    seen, line, came = [], 0, True
    while came:
        line += 5
        write(target, str(line))
        came = at_line(
            lambda: write(target, "new"), line, lambda: seen.append(versions(atomic.settled(target))), atomic
        )
        assert not came or seen[-1] in ({str(line)}, {"new"})
        assert [path.name for path in target.parent.iterdir()] == ["shop"]


def test_what_fails_leaves_the_old_folder_and_nothing_beside(target):
    with (
        pytest.raises(OSError, match=r"/shop was not written; .* unchanged \(.*disk is full"),
        atomic.fresh_folder(target) as fresh,
    ):
        (fresh / "0.txt").write_text("new")
        raise OSError(errno.ENOSPC, "the disk is full")
    for error in (OSError(errno.ENOSPC, "the disk is full"), OSError("a plain sentence")):
        with pytest.raises(OSError) as caught, atomic.fresh_file(target / "0.txt"):
            raise error
        assert "shop/0.txt was not written" in str(caught.value) and caught.value.errno == error.errno
    assert versions(target) == {"old"} and [path.name for path in target.parent.iterdir()] == ["shop"]


def test_a_file_is_as_before_until_it_is_whole(tmp_path):
    file = tmp_path / "deep" / "facts.json"
    with atomic.fresh_file(file) as partial:
        partial.write_text("old")
    with pytest.raises(KeyError), atomic.fresh_file(file) as partial:
        partial.write_text("ne")
        raise KeyError
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]
    link = tmp_path / "link.json"
    link.symlink_to(file)
    with atomic.fresh_file(link) as partial:
        partial.write_text("new")
    assert link.is_symlink() and file.read_text() == "new"


def test_a_link_to_a_folder_stays_one_and_the_mode_is_that_of_any_new_folder(target, tmp_path):
    (tmp_path / "latest").symlink_to(target)
    write(tmp_path / "latest", "new")
    assert (tmp_path / "latest").is_symlink() and versions(target) == {"new"}
    (tmp_path / "plain").mkdir()
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_files_have_the_mode_of_the_umask_whatever_wrote_them(tmp_path):
    def private(path):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    before = os.umask(0o027)
    try:
        with atomic.fresh_file(tmp_path / "file") as partial:
            private(partial)
        with atomic.fresh_folder(tmp_path / "folder") as fresh:
            (fresh / "inner").mkdir()
            private(fresh / "inner" / "file")
            (fresh / "script").touch(0o700)
    finally:
        os.umask(before)
    for path in (tmp_path / "file", tmp_path / "folder" / "inner" / "file"):
        assert path.stat().st_mode & 0o777 == 0o640, path
    assert (tmp_path / "folder" / "script").stat().st_mode & 0o700 == 0o700


def test_hidden_files_of_users_are_not_removed(target):
    for name in (".DS_Store", ".config.json.note", ".chapter.lock"):
        (target / name).touch()
    known = [path.name for path in target.iterdir() if not path.name.startswith(".")]
    atomic.check_only(target, known)
    (target / ".env").write_text("mine")
    with pytest.raises(ValueError, match=r"holds '\.env'"):
        atomic.check_only(target, known)


def test_what_cannot_be_replaced_is_refused_before_anything_is_written(target, monkeypatch):
    (target.parent / "file").write_text("mine")
    monkeypatch.chdir(target / "inner")
    for wrong in (target, target.parent / "file", "/"):
        with pytest.raises(ValueError, match=r"cannot be replaced as a whole|is a file"), atomic.fresh_folder(wrong):
            pytest.fail("it went on")
    assert versions(target) == {"old"}


def test_names_that_begin_alike_do_not_meet(target):
    other = target.with_name("shop.v2")
    aside = target.with_name(".shop.v2.01234567.aside")
    target.rename(aside)
    assert not atomic.settled(target).exists()
    assert versions(atomic.settled(other)) == {"old"}


def test_folders_of_a_living_writer_stay(target):
    with atomic.fresh_folder(target) as first:
        (first / "0.txt").write_text("first")
        write(target, "second")
        assert (first / "0.txt").read_text() == "first"
    assert [path.name for path in target.iterdir()] == ["0.txt"]
