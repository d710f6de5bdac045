"""The clock of this machine: timers, TTL and timestamps are told by it."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from agentflow.cli.doctor.findings import Finding, Subject, error, note, ok, skipped, warning
from agentflow.cli.doctor.state_checks import no_state, subtask_paths

_FROM = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
_TO = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
_WATCHED_S = 0.2
_JUMP_S = 0.05
_AHEAD_S = 60
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC of <sys/timex.h>
_ERROR_S = 1.0


def clock(subject: Subject) -> Sequence[Finding]:
    """Look whether the time can be right, and goes forward at its pace."""
    now = time.time()
    shown = datetime.fromtimestamp(now, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    fix = "set the clock, and let it be kept by NTP (timedatectl set-ntp true)"
    if not _FROM < now < _TO:
        return [error(shown, "the time: timers and TTL go by it", fix)]
    latest = 0.0 if no_state(subject) else _latest_write(subject)
    if latest > now + _AHEAD_S:
        found = f"{shown}, and the state was written {latest - now:.0f} s later than that"
        return [warning(found, "a clock that is not set back: timers and TTL wait until it has caught up", fix)]
    began, began_steadily = time.time(), time.monotonic()
    time.sleep(_WATCHED_S)
    jump = (time.time() - began) - (time.monotonic() - began_steadily)
    if abs(jump) > _JUMP_S:
        found = f"{shown}; it went {jump:+.3f} s within {_WATCHED_S:g} s"
        return [warning(found, "a clock that keeps its pace", fix)]
    return [ok(shown)]


def _latest_write(subject: Subject) -> float:
    files = [file for path in subtask_paths(subject) for file in path.rglob("*") if file.is_file()]
    latest = 0.0
    for file in files:
        try:
            latest = max(latest, file.stat().st_mtime)
        except OSError:
            continue  # compacted away meanwhile
    return latest


def time_zone(subject: Subject) -> Sequence[Finding]:  # noqa: ARG001 (one signature for all checks)
    """Say in which zone this machine lives, where that is not the zone of the logs."""
    local = datetime.now(UTC).astimezone()
    if not local.utcoffset():
        return [ok("UTC, as logs and timestamps of agentflow are")]
    return [note(f"{local.tzname()} ({local.strftime('%z')}); logs and timestamps of agentflow are in UTC")]


class _Timex(ctypes.Structure):
    """The beginning of ``struct timex``, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def synchronisation(subject: Subject) -> Sequence[Finding]:  # noqa: ARG001 (one signature for all checks)
    """Ask the kernel whether something keeps its clock right; nothing is set."""
    if sys.platform != "linux":
        return [skipped("asked of Linux only")]
    state = _Timex()
    try:
        code = ctypes.CDLL(None).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError) as failure:
        return [skipped(f"the kernel cannot be asked: {failure}")]
    if code < 0:
        return [skipped("the kernel does not tell (not permitted here)")]
    expected, fix = "a clock that NTP keeps", "timedatectl set-ntp true, or install chrony; in a container: on its host"
    if state.status & _UNSYNCHRONISED:
        return [note("nothing keeps this machine's clock right, as far as its kernel knows", fix)]
    error_s = state.maxerror / 1_000_000
    if error_s > _ERROR_S:
        return [warning(f"it may be wrong by {error_s:.1f} s", expected, fix)]
    return [ok(f"kept, right within {error_s * 1000:.0f} ms")]
