"""Damaged files and rows are named, never skipped and never created anew."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest
from rocksdict import Options, Rdict

from agentflow.core.delta import Table
from agentflow.errors import DiskFull, InternalError, StateCorrupted, StateLocked, StateUnavailable
from agentflow.state.directory import ROCKSDB_DIRECTORY
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.state.rocksdb_errors import state_error
from agentflow.state.rocksdb_store import COLUMN_FAMILIES
from agentflow.testing.conformance.keyed_state import LARGE_BYTES, NEW, OLD, STAGED, checkpoint, memory_write

NOISE = random.Random(7).randbytes(400 * 1_000)
ROWS = [memory_write(b"%04d" % number, "p", b"\x00" + NOISE[number * 400 :][:400]) for number in range(1_000)]


def open_state(path):
    return RocksDBKeyedState.open(path, job="unit", free_min_bytes=0)


@pytest.fixture
async def path(tmp_path):
    """A directory with checkpoint 1, whose rows are in files."""
    path = tmp_path / "state"
    with contextlib.closing(open_state(path)) as state:
        await checkpoint(state, 1, ROWS, *OLD)
    return path


@contextlib.contextmanager
def raw(path):
    """The column families, by name, behind the back of the state."""
    with Rdict(
        str(path / ROCKSDB_DIRECTORY),
        Options(raw_mode=True),
        {name: Options(raw_mode=True) for name in COLUMN_FAMILIES},
    ) as database:
        families = {name: database.get_column_family(name) for name in COLUMN_FAMILIES}
        yield families
        for family in families.values():
            family.close()


def biggest(path, pattern):
    return max((path / ROCKSDB_DIRECTORY).glob(pattern), key=lambda file: file.stat().st_size)


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def use(path):
    with contextlib.closing(open_state(path)) as state:
        for table in Table:
            list(state.rows(table))


async def complete(path):
    with contextlib.closing(open_state(path)) as state:
        await state.complete()


def read_every_row(state):
    for _, _, key, _, value in ROWS:
        assert state.get(0, key, "p") == value


def test_a_flipped_bit_in_a_table_file_is_corruption_of_that_file(path):
    file = biggest(path, "*.sst")
    flip(file, file.stat().st_size // 2)
    with pytest.raises(StateCorrupted) as damaged:
        use(path)
    assert damaged.value.where["file"] == file.name
    assert "savepoint" in damaged.value.fix


def test_a_point_read_meets_damage_as_an_error_and_not_as_absence(path):
    file = biggest(path, "*.sst")
    for position in range(1_000, file.stat().st_size // 2, 3_000):
        flip(file, position)
    with contextlib.closing(open_state(path)) as state, pytest.raises(StateCorrupted):
        read_every_row(state)


def test_a_missing_table_file_is_corruption(path):
    biggest(path, "*.sst").unlink()
    with pytest.raises(StateCorrupted):
        use(path)


def test_a_damaged_manifest_is_corruption(path):
    flip(biggest(path, "MANIFEST-*"), 40)
    with pytest.raises(StateCorrupted):
        use(path)


def test_a_missing_manifest_is_corruption(path):
    biggest(path, "MANIFEST-*").unlink()
    with pytest.raises(StateCorrupted):
        use(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"MANIFEST-999999\n"])
def test_a_damaged_current_file_is_corruption(path, content):
    (path / ROCKSDB_DIRECTORY / "CURRENT").write_bytes(content)
    with pytest.raises(StateCorrupted):
        use(path)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("default", b"checkpoint", b"\x01\x00\x00\x00\x00\x91\x01"),  # wrong checksum
        ("default", b"checkpoint", b"\x02\x00"),  # a tag of a later version
        ("default", b"prepared", b"\x01\x00\x00\x00\x00"),  # a decision without a body
        ("memory", b"\x00\x00k\x00\x00p", b"\xf7later"),  # a stored value with a tag of a later version
        ("memory", b"\x00\x00k\x00\x00p", b"\xf1\xc1"),  # the marker of a large value that is none
        ("memory", b"no terminator", b"\x00"),
        ("runs", b"\x00\x00k\x00\x00\xff", b"\x00"),  # a name that is not UTF-8
        ("parts", b"i\x01row", b"\x00"),  # the index of large values with a value in it
    ],
)
def test_a_row_that_this_layout_does_not_write_is_corruption(path, family, key, value):
    with raw(path) as families:
        families[family][key] = value
    with pytest.raises(StateCorrupted) as damaged:
        use(path)
    assert damaged.value.where["directory"] == str(path)


@pytest.mark.parametrize("harm", ["delete", "shorten", "change"])
async def test_a_damaged_part_of_a_large_value_is_corruption(path, harm):
    with raw(path) as families:
        parts = families["parts"]
        key = next(key for key, value in parts.items() if len(value) == LARGE_BYTES)
        match harm:
            case "delete":
                del parts[key]
            case "shorten":
                parts[key] = parts[key][:-1]
            case "change":
                parts[key] = b"?" + parts[key][1:]
    with contextlib.closing(open_state(path)) as state, pytest.raises(StateCorrupted, match="large value"):
        state.scan(0, b"k", "")


@pytest.mark.parametrize("harm", ["delete", "change"])
@pytest.mark.parametrize("kind", [b"c", b"o"])
async def test_a_damaged_row_of_a_decided_checkpoint_is_corruption(path, harm, kind):
    with contextlib.closing(open_state(path)) as state:
        await state.prepare(2, iter(NEW), STAGED)
    with raw(path) as families:
        key = next(key for key in families["prepared"].keys() if key[8:9] == kind)  # noqa: SIM118 - not a dict
        if harm == "delete":
            del families["prepared"][key]
        else:
            families["prepared"][key] = families["prepared"][key][:-1] + b"?"
    with pytest.raises(StateCorrupted, match="of checkpoint 2"):
        await complete(path)


async def test_large_values_leave_no_parts_behind(path):
    with contextlib.closing(open_state(path)) as state:
        await checkpoint(state, 2, *NEW)
        assert len(state._large) == 2
        await checkpoint(state, 3, [(Table.MEMORY, 0, b"k", name, None) for name in ("large", "grown")])
        assert len(state._large) == 0
    with raw(path) as families:
        assert list(families["parts"].items()) == []
        assert list(families["prepared"].items()) == []


async def test_a_swept_large_value_leaves_no_parts_behind(tmp_path):
    stamped = b"\x01" + (5).to_bytes(8, "big") + b"x" * LARGE_BYTES
    with contextlib.closing(open_state(tmp_path / "s")) as state:
        await checkpoint(state, 1, [memory_write(b"k", "p", stamped)])
        assert await state.sweep(Table.MEMORY, 5, 2**62) == 1
    with raw(tmp_path / "s") as families:
        assert list(families["parts"].items()) == []


async def test_an_undecided_checkpoint_leaves_no_rows_behind(tmp_path):
    def delta():
        yield [memory_write(b"k", "p", b"l" * 2 * LARGE_BYTES)]
        raise InternalError("the core is poisoned")

    with contextlib.closing(open_state(tmp_path / "s")) as state, pytest.raises(InternalError):
        await state.prepare(1, delta(), {})
    open_state(tmp_path / "s").close()
    with raw(tmp_path / "s") as families:
        assert [list(family.items()) for family in families.values()] == [[]] * len(COLUMN_FAMILIES)


async def test_a_cancelled_sync_refuses_later_writes_until_the_state_is_opened_again(path):
    with contextlib.closing(open_state(path)) as state:
        sync = state._store.sync("testing")
        sync.send(None)  # the sync is under way in its thread
        sync.close()
        with pytest.raises(StateUnavailable, match="interrupted"):
            await state.prepare(2, iter(NEW), {})
    with contextlib.closing(open_state(path)) as state:
        await checkpoint(state, 2, *NEW)


@pytest.mark.parametrize(
    ("text", "kind", "file"),
    [
        (
            "IO error: No space left on device: While appending to file: /s/000004.log: No space left on device",
            DiskFull,
            "000004.log",
        ),
        ("IO error: Disk quota exceeded: While appending to file: /s/000004.log", DiskFull, "000004.log"),
        (
            "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /s/000012.sst offset 0 size 9",
            StateCorrupted,
            "000012.sst",
        ),
        ("IO error: While lock file: /s/LOCK: Resource temporarily unavailable", StateLocked, None),
        (
            "IO error: Input/output error: While pread offset 0 len 9: /s/MANIFEST-000005",
            StateUnavailable,
            "MANIFEST-000005",
        ),
    ],
)
def test_a_status_text_becomes_a_typed_error_that_says_what_to_do(tmp_path, text, kind, file):
    error = state_error(Exception(text), directory=tmp_path, doing="reading")
    assert type(error) is kind
    assert error.where.get("file") == file
    assert text in str(error)
    assert error.expected
    assert error.fix


def test_a_bug_is_not_taken_for_a_failing_disk(tmp_path):
    with pytest.raises(TypeError, match="a bug"):
        state_error(TypeError("a bug"), directory=tmp_path, doing="reading")


async def test_close_leaves_no_thread_behind(tmp_path):
    state = open_state(tmp_path / "s")
    await checkpoint(state, 1, *OLD)
    names = [thread.name for thread in threading.enumerate()]
    assert any(name.startswith("agentflow-sync") for name in names)
    state.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("agentflow-sync")]
