"""What an existing directory may be, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import pytest
from rocksdict import Options, Rdict

from agentflow.errors import DiskFull, StateCorrupted, StateForbidden, StateLocked, StateMismatch, StateVersionTooNew
from agentflow.state.directory import FORMAT_FILE, LOCK_FILE, ROCKSDB_DIRECTORY, StateDirectory
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import OLD, checkpoint, laid_over, memory_write, read_all


def open_state(path, *, job="unit", free_min_bytes=0):
    return RocksDBKeyedState.open(path, job=job, free_min_bytes=free_min_bytes)


@pytest.fixture
async def path(tmp_path):
    """A directory with checkpoint 1."""
    path = tmp_path / "state"
    with contextlib.closing(open_state(path)) as state:
        await checkpoint(state, 1, *OLD)
    return path


def change_format(path, **fields):
    file = path / FORMAT_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_missing_directory_is_created_with_its_parents(tmp_path):
    open_state(tmp_path / "a" / "b" / "c").close()
    stored = json.loads((tmp_path / "a" / "b" / "c" / FORMAT_FILE).read_text())
    assert (stored["format"], stored["job"], stored["is_ready"]) == (1, "unit", True)
    assert stored["created_by"].startswith("agentflow ")


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "lost+found").mkdir()
    with contextlib.closing(open_state(tmp_path)) as state:
        assert state.checkpoint == 0


def test_a_newer_format_is_refused_before_anything_is_read(path):
    change_format(path, format=2, created_by="agentflow 9.1", job={"shape": "that we do not know"})
    (path / ROCKSDB_DIRECTORY / "CURRENT").write_text("format 2 has no RocksDB at all")
    with pytest.raises(StateVersionTooNew) as refused:
        open_state(path)
    assert "agentflow 9.1" in str(refused.value)
    assert "format 1 or older" in str(refused.value)


def test_another_jobs_directory_is_refused(path):
    with pytest.raises(StateMismatch) as refused:
        open_state(path, job="other")
    assert (refused.value.where["its job"], refused.value.where["this job"]) == ("'unit'", "'other'")
    open_state(path).close()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": "1"}',
        '{"format": 1}',
        '{"format": 0, "job": "unit", "created_by": "", "is_ready": true}',
    ],
)
def test_a_damaged_format_file_is_corruption(path, content):
    (path / FORMAT_FILE).write_text(content)
    with pytest.raises(StateCorrupted) as refused:
        open_state(path)
    assert refused.value.where["file"] == FORMAT_FILE


@pytest.mark.parametrize("name", [ROCKSDB_DIRECTORY, "CURRENT", "MANIFEST-000001", "000012.sst"])
def test_files_of_rocksdb_without_a_format_file_are_never_created_anew(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(StateCorrupted, match=name):
        open_state(tmp_path)
    assert not (tmp_path / FORMAT_FILE).exists()


async def test_a_crash_while_creating_is_finished_by_the_next_open(path):
    change_format(path, is_ready=False)
    with contextlib.closing(open_state(path)) as state:
        assert read_all(state) == laid_over({}, OLD)
    assert json.loads((path / FORMAT_FILE).read_text())["is_ready"] is True


def test_lost_files_of_a_ready_directory_are_never_created_anew(path):
    for file in (path / ROCKSDB_DIRECTORY).iterdir():
        file.unlink()
    with pytest.raises(StateCorrupted) as refused:
        open_state(path)
    assert refused.value.where["file"] == "CURRENT"


def test_a_half_written_format_file_does_not_matter(path):
    (path / f"{FORMAT_FILE}.tmp").write_text('{"form')
    open_state(path).close()


def test_rocksdbs_own_lock_is_respected(path):
    families = Rdict.list_cf(str(path / ROCKSDB_DIRECTORY))
    other = Rdict(
        str(path / ROCKSDB_DIRECTORY), Options(raw_mode=True), {name: Options(raw_mode=True) for name in families}
    )
    with pytest.raises(StateLocked):
        open_state(path)
    other.close()
    open_state(path).close()


def test_a_failed_open_gives_the_lock_back(path):
    with pytest.raises(StateMismatch):
        open_state(path, job="other")
    with pytest.raises(DiskFull):
        open_state(path, free_min_bytes=2**62)
    open_state(path).close()


def test_too_little_free_space_is_refused_at_open_and_names_the_setting(path):
    with pytest.raises(DiskFull) as refused:
        open_state(path, free_min_bytes=2**62)
    assert refused.value.where["state.free-min"] == f"{2**62} bytes"


async def test_too_little_free_space_is_refused_at_prepare_and_nothing_is_written(path):
    with contextlib.closing(open_state(path)) as state:
        state._directory._free_min_bytes = 2**62
        with pytest.raises(DiskFull):
            await state.prepare(2, iter([[OLD[0][0]]]), {})
        assert state.prepared is None
        state._directory._free_min_bytes = 0
        await checkpoint(state, 2, [memory_write(b"k", "kept", b"later")])
        assert state.get(0, b"k", "kept") == b"later"


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateForbidden) as refused:
        open_state(tmp_path / "state")
    assert refused.value.where["directory"] == str(tmp_path / "state")


def test_a_directory_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:  # root may write everywhere
        os.seteuid(65_534)
    try:
        with pytest.raises(StateForbidden, match=os.strerror(errno.EACCES)):
            open_state(tmp_path / "state")
    finally:
        os.seteuid(user)


def test_the_lock_file_names_its_owner_and_stays(tmp_path):
    directory = StateDirectory(tmp_path, job="unit", free_min_bytes=0)
    assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    directory.close()
    directory.close()
    assert (tmp_path / LOCK_FILE).exists()
