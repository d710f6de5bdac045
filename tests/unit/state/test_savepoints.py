"""Savepoints as files: written last to first, shared, listed, checked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow.errors import ConfigError, DiskFull, StateCorrupted, StateMismatch, StateVersionTooNew
from agentflow.state.savepoint_format import Manifest, SavepointFile, SubtaskSavepoint, decode_manifest, encode_manifest
from agentflow.state.savepoint_restore import restore_embedded
from agentflow.state.savepoint_storage import DirectoryStorage
from agentflow.state.savepoints import (
    Savepoint,
    check_files,
    delete_savepoint,
    fetch_subtask,
    list_savepoints,
    load_savepoint,
    prune_savepoints,
    write_savepoint,
)

FACTS = SubtaskSavepoint(7, {"in.jsonl": 12}, ["hash"], "incarnation", subtask=0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Files as an export has them."""
    root = tmp_path / "export"
    for name, content in {
        "subtask-0/rocksdb/000012.sst": b"a table" * 1000,
        "subtask-0/rocksdb/CURRENT": b"MANIFEST-000005\n",
        "subtask-0/journal/000004.sst": b"records",
        "subtask-0/signals/00000000000000000007.json": b"{}",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def files(root: Path) -> dict[str, Path]:
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}


def write(storage: Any, root: Path, *, job: str = "orders", **options: Any) -> Savepoint:
    return write_savepoint(storage, files(root), job=job, kind="embedded", subtasks=[FACTS], ttl_ms=None, **options)


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "backups")


class Died(BaseException):
    """The process ends here."""


class MortalStorage:
    """Dies before or behind the n-th thing that it does, or in the middle of a write."""

    def __init__(self, storage: DirectoryStorage, lives: int) -> None:
        self._storage = storage
        self._lives = lives
        self.place = storage.place
        self.folders, self.read, self.chunks = storage.folders, storage.read, storage.chunks
        self.fetch, self.delete = storage.fetch, storage.delete

    def _live(self) -> None:
        self._lives -= 1
        if self._lives < 0:
            raise Died

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        def mortal() -> Iterator[bytes]:
            for chunk in chunks:
                self._live()
                yield chunk[:3]
                yield chunk[3:]
            self._live()

        self._live()
        self._storage.write(name, mortal())
        self._live()

    def share(self, name: str, shared: str) -> bool:
        self._live()
        is_shared = self._storage.share(name, shared)
        self._live()
        return is_shared


def test_what_dies_on_the_way_is_no_savepoint_and_harms_none(state: Path, storage: DirectoryStorage) -> None:
    first = write(storage, state)
    (state / "subtask-0/rocksdb/000013.sst").write_bytes(b"news")
    lives = 0
    while True:
        try:
            write(MortalStorage(storage, lives), state)
            break
        except Died:
            lives += 1
    assert lives > 10
    listed = list_savepoints(storage)
    finished = [one.name for one in listed if one.manifest is not None]
    assert first.name in finished
    assert len(finished) == 2 + 1, "the last one, and the one that died behind its manifest"
    for one in listed:
        if one.manifest is not None:
            assert check_files(load_savepoint(storage, one.name)) == []
        else:
            assert "never finished" in one.problem


def test_a_file_that_is_there_is_not_copied_again(state: Path, storage: DirectoryStorage, tmp_path: Path) -> None:
    first = write(storage, state)
    (state / "subtask-0/rocksdb/000013.sst").write_bytes(b"news")
    second = write(storage, state)
    other_place = tmp_path / "restored"
    shutil.copytree(state, other_place)  # other inodes, the same content
    third = write(storage, other_place)
    folder = Path(storage.place)
    name = "subtask-0/rocksdb/000012.sst"
    assert (folder / third.name / name).stat().st_nlink == 3
    assert (folder / second.name / "subtask-0/rocksdb/000013.sst").stat().st_nlink == 2
    assert (state / name).stat().st_nlink == 1, "never the file of the job itself: one damaged block would damage both"
    shutil.rmtree(folder / first.name)
    shutil.rmtree(folder / second.name)
    assert check_files(load_savepoint(storage, third.name)) == []


def test_savepoints_of_another_job_are_not_shared_with(state: Path, storage: DirectoryStorage) -> None:
    write(storage, state, job="other")
    mine = write(storage, state)
    assert (Path(storage.place) / mine.name / "subtask-0/rocksdb/000012.sst").stat().st_nlink == 1


def test_a_file_of_the_same_size_and_other_content_is_copied(state: Path, storage: DirectoryStorage) -> None:
    write(storage, state)
    table = state / "subtask-0/rocksdb/000012.sst"
    table.unlink()
    table.write_bytes(b"A TABLE" * 1000)
    second = write(storage, state)
    assert check_files(second) == []
    assert (Path(storage.place) / second.name / "subtask-0/rocksdb/000012.sst").read_bytes() == b"A TABLE" * 1000


def test_where_nothing_can_be_shared_everything_is_copied(state: Path, storage: DirectoryStorage) -> None:
    class Unshared(MortalStorage):
        def share(self, name: str, shared: str) -> bool:
            return False

    write(storage, state)
    second = write(Unshared(storage, 10**6), state)
    assert check_files(second) == []


def test_progress_ends_at_the_whole(state: Path, storage: DirectoryStorage) -> None:
    for _ in range(2):
        told: list[tuple[str, int, int]] = []
        savepoint = write(storage, state, progress=lambda *one, told=told: told.append(one))
        assert told[-1] == ("copying the state", savepoint.manifest.size, savepoint.manifest.size)
        assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_manifest_comes_back_as_it_was(state: Path, storage: DirectoryStorage) -> None:
    savepoint = write(storage, state)
    loaded = load_savepoint(storage, savepoint.name)
    assert loaded.manifest == savepoint.manifest
    assert loaded.manifest.subtasks == [FACTS]
    assert (loaded.manifest.job, loaded.manifest.checkpoint) == ("orders", 7)


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_damaged_manifest_is_told_and_listed(cut: int, state: Path, storage: DirectoryStorage) -> None:
    savepoint = write(storage, state)
    manifest = Path(savepoint.place) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:cut])
    with pytest.raises(StateCorrupted):
        load_savepoint(storage, savepoint.name)
    assert [one.manifest for one in list_savepoints(storage)] == [None]


def test_a_manifest_with_another_number_in_it_is_damaged(state: Path, storage: DirectoryStorage) -> None:
    savepoint = write(storage, state)
    manifest = Path(savepoint.place) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"checkpoint":7', b'"checkpoint":8'))
    with pytest.raises(StateCorrupted, match="checksum mismatch"):
        load_savepoint(storage, savepoint.name)


@pytest.mark.parametrize("field", ["format", "state_format"])
def test_a_newer_format_is_refused_by_name(field: str, state: Path, storage: DirectoryStorage) -> None:
    savepoint = write(storage, state)
    newer = msgspec.structs.replace(savepoint.manifest, **{field: 99, "created_by": "agentflow 9.9"})
    Path(savepoint.place, "manifest.json").write_bytes(encode_manifest(newer))
    with pytest.raises(StateVersionTooNew, match=r"format 99, written by agentflow 9\.9"):
        load_savepoint(storage, savepoint.name)


def test_a_folder_that_is_none_is_told_with_what_to_do(state: Path, storage: DirectoryStorage, tmp_path: Path) -> None:
    write(storage, state)
    with pytest.raises(ConfigError, match=r"holds savepoints itself\nhelp: agentflow savepoint list .*backups$"):
        load_savepoint(DirectoryStorage(tmp_path), "backups")
    with pytest.raises(ConfigError, match="no-such is no savepoint: there is nothing"):
        load_savepoint(storage, "no-such")


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(shorten, "bytes instead of"), (turn_a_bit, "checksum mismatch"), (Path.unlink, "is missing")],
)
def test_a_damaged_file_is_found_and_never_restored(
    damage: Callable[[Path], object], problem: str, state: Path, storage: DirectoryStorage, tmp_path: Path
) -> None:
    savepoint = write(storage, state)
    damage(Path(savepoint.place) / "subtask-0/rocksdb/000012.sst")
    (found,) = check_files(savepoint)
    assert found.file == "subtask-0/rocksdb/000012.sst"
    assert problem in found.problem
    with pytest.raises(StateCorrupted, match=problem):
        restore_embedded(savepoint, tmp_path / "new", "orders")
    assert list((tmp_path / "new").rglob("rocksdb")) == []
    with pytest.raises(StateCorrupted, match=problem):
        fetch_subtask(savepoint, 0, tmp_path / "scratch", is_checked=False)


def test_a_restore_puts_every_file_in_its_place(state: Path, storage: DirectoryStorage, tmp_path: Path) -> None:
    savepoint = write(storage, state)
    new = tmp_path / "deep" / "new"
    restore_embedded(savepoint, new, "renamed", beside=("signals",))
    assert sorted(files(new)) == [
        "signals/00000000000000000007.json",
        "subtask-0/agentflow.json",
        "subtask-0/journal/000004.sst",
        "subtask-0/rocksdb/000012.sst",
        "subtask-0/rocksdb/CURRENT",
    ]
    assert msgspec.json.decode((new / "subtask-0/agentflow.json").read_bytes())["job"] == "renamed"
    assert (new / "subtask-0/rocksdb/000012.sst").stat().st_nlink == 1, "the job may do with it what it wants"
    with pytest.raises(StateMismatch, match="never overwrites"):
        restore_embedded(savepoint, new, "renamed", beside=("signals",))


def test_a_restore_that_was_interrupted_is_begun_anew(state: Path, storage: DirectoryStorage, tmp_path: Path) -> None:
    savepoint = write(storage, state)
    new = tmp_path / "new"

    def stop(doing: str, done: int, total: int) -> None:
        if done == total:
            raise Died

    with pytest.raises(Died):
        restore_embedded(savepoint, new, "orders", beside=("signals",), progress=stop)
    assert not (new / "subtask-0").exists()
    (new / ".restoring-0123").mkdir()  # of a process that was killed
    restore_embedded(savepoint, new, "orders", beside=("signals",))
    assert sorted(path.name for path in new.iterdir()) == ["signals", "subtask-0"]


@pytest.mark.parametrize("name", ["../../evil", "subtask-0/../evil", "subtask-0/rocksdb/../evil", "/etc/evil", "evil"])
def test_a_name_that_leads_elsewhere_is_refused(
    name: str, state: Path, storage: DirectoryStorage, tmp_path: Path
) -> None:
    savepoint = write(storage, state)
    evil = msgspec.structs.replace(savepoint.manifest.files[0], name=name)
    manifest = msgspec.structs.replace(savepoint.manifest, files=[evil])
    with pytest.raises(StateCorrupted, match="no state has"):
        restore_embedded(Savepoint(storage, savepoint.name, manifest), tmp_path / "new", "orders")


def test_a_view_changes_nothing_of_a_savepoint(state: Path, storage: DirectoryStorage, tmp_path: Path) -> None:
    savepoint = write(storage, state)
    fetch_subtask(savepoint, 0, tmp_path / "scratch", is_checked=False)
    (tmp_path / "scratch/rocksdb/CURRENT").write_bytes(b"changed")
    (tmp_path / "scratch/rocksdb/000012.sst").unlink()
    assert check_files(savepoint) == []


def test_what_failed_leaves_no_trace(state: Path, storage: DirectoryStorage) -> None:
    first = write(storage, state)

    class Full(MortalStorage):
        def write(self, name: str, chunks: Iterable[bytes]) -> None:
            if name.endswith("000013.sst"):
                raise DiskFull("no space", fix="free some")
            super().write(name, chunks)

    (state / "subtask-0/rocksdb/000013.sst").write_bytes(b"news")
    with pytest.raises(DiskFull):
        write(Full(storage, 10**6), state)
    assert list(storage.folders()) == [first.name]
    assert check_files(first) == []


def test_what_is_deleted_is_no_savepoint_from_the_first_moment_on(state: Path, storage: DirectoryStorage) -> None:
    first, second = write(storage, state), write(storage, state)
    (Path(first.place) / "manifest.json").unlink()  # the deletion was interrupted
    assert [one.name for one in list_savepoints(storage) if one.manifest is not None] == [second.name]
    delete_savepoint(first)
    assert list(storage.folders()) == [second.name]
    assert check_files(second) == []


def test_the_newest_of_each_job_are_kept(state: Path, storage: DirectoryStorage) -> None:
    written = [write(storage, state, job=job) for job in ("a", "b", "a", "a", "b")]
    (Path(storage.place) / "half").mkdir()
    assert prune_savepoints(storage, 2) == [written[0].place]
    assert sorted(prune_savepoints(storage, 1)) == sorted([written[2].place, written[1].place])
    left = [one.name for one in list_savepoints(storage)]
    assert left == ["half", written[3].name, written[4].name]
    assert check_files(written[3]) == []


def names_of(found: Sequence[Any]) -> list[str]:
    return [one.name for one in found]


def test_savepoints_are_listed_oldest_first(state: Path, storage: DirectoryStorage) -> None:
    written = [write(storage, state, job=job).name for job in ("z", "a", "m")]
    assert names_of(list_savepoints(storage)) == written


def test_a_manifest_of_this_format_stays_readable() -> None:
    """A stored format: what this version has written must be read by all later ones."""
    body = (
        b'{"format":1,"state-format":1,"job":"orders","kind":"embedded","created-by":"agentflow 0.1.0",'
        b'"created-at":"2026-01-02T03:04:05.678901Z","ttl-ms":null,"subtasks":[{"checkpoint":7,"positions":{"in.jsonl":12},'
        b'"plan-hashes":["hash"],"incarnation":"i","subtask":0}],"files":[{"name":"subtask-0/rocksdb/CURRENT","size":16,'
        b'"sha256":"ab","origin":"1:2:3"}]}'
    )
    content = b'{"manifest":' + body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    manifest = decode_manifest(content, "place")
    facts = SubtaskSavepoint(7, {"in.jsonl": 12}, ["hash"], "i", subtask=0)
    created_at = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    file = SavepointFile("subtask-0/rocksdb/CURRENT", 16, "ab", "1:2:3")
    assert manifest == Manifest(
        state_format=1,
        job="orders",
        kind="embedded",
        created_by="agentflow 0.1.0",
        created_at=created_at,
        subtasks=[facts],
        files=[file],
    )
