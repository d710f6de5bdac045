"""Checks run at the same time, have a time of their own, and break alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from agentflow.cli.doctor.findings import Check, Result, Subject, error, note, ok, skipped, warning
from agentflow.cli.doctor.running import run_checks
from agentflow.cli.doctor.table import CHECKS
from agentflow.errors import StateForbidden

SUBJECT = Subject("job.yaml", {})


def fine(subject):
    return [ok("well")]


def outcomes(*checks):
    return {outcome.check.name: outcome for outcome in run_checks(checks, SUBJECT)}


@pytest.fixture
def mute():
    """A socket that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_coroutine_that_waits_for_an_answer_that_never_comes_ends_in_time(mute):
    async def hang(subject):
        reader, writer = await asyncio.open_connection("127.0.0.1", mute)
        try:
            await reader.read()
        finally:
            writer.close()
        return [ok("never")]

    began = time.monotonic()
    found = outcomes(Check("g", "hung", hang, timeout_s=0.2, stuck="wake it"), Check("g", "other", fine))
    assert time.monotonic() - began < 3
    (finding,) = found["hung"].findings
    assert (finding.result, finding.found, finding.fix) == (Result.ERROR, "it did not end within 0.2 s", "wake it")
    assert found["other"].result is Result.OK


def test_a_function_that_hangs_in_its_thread_neither_holds_the_others_nor_the_end(mute):
    def hang(subject):
        with socket.create_connection(("127.0.0.1", mute)) as connection:
            connection.recv(1)
        return [ok("never")]

    began = time.monotonic()
    found = outcomes(Check("g", "hung", hang, timeout_s=0.2), Check("g", "other", fine))
    assert time.monotonic() - began < 3
    assert found["hung"].findings[0].found == "it did not end within 0.2 s"
    assert found["other"].result is Result.OK


def test_a_coroutine_that_ignores_its_cancellation_is_left_behind():
    async def stubborn(subject):
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue
        return [ok("never")]

    began = time.monotonic()
    found = outcomes(Check("g", "stubborn", stubborn, timeout_s=0.1))
    assert time.monotonic() - began < 5
    assert found["stubborn"].result is Result.ERROR


@pytest.mark.parametrize("is_first", [False, True])
def test_a_check_that_raises_is_a_finding_of_its_own_and_the_others_count(is_first):
    def broken(subject):
        raise ZeroDivisionError("by zero")

    found = outcomes(Check("g", "broken", broken, is_first=is_first), Check("g", "other", fine))
    (finding,) = found["broken"].findings
    assert finding.result is Result.ERROR
    assert finding.found.startswith("the check itself broke: ZeroDivisionError: by zero (")
    assert "test_running.py" in finding.found
    assert found["other"].result is Result.OK


def test_a_condition_that_raises_is_a_finding_too():
    def broken(subject):
        raise KeyError("job")

    assert outcomes(Check("g", "broken", fine, unless=broken))["broken"].result is Result.ERROR


def test_a_crash_that_is_no_exception_is_a_finding_too():
    class Panic(BaseException):
        """As RocksDB's binding raises it."""

    def broken(subject):
        raise Panic("at the disk")

    assert "Panic: at the disk" in outcomes(Check("g", "broken", broken))["broken"].findings[0].found


def test_an_error_of_the_engine_keeps_its_fields():
    def refused(subject):
        raise StateForbidden("no", where={"directory": "/x"}, expected="yes", fix="do it")

    (finding,) = outcomes(Check("g", "refused", refused))["refused"].findings
    assert (finding.found, finding.expected, finding.fix) == ("no\ndirectory /x", "yes", "do it")


def test_checks_that_wait_do_so_at_the_same_time():
    meeting = threading.Barrier(3)

    def meet(subject):
        meeting.wait(5)
        return [ok("met")]

    found = outcomes(*(Check("g", f"c{number}", meet) for number in range(3)))
    assert {outcome.result for outcome in found.values()} == {Result.OK}


def test_what_rests_on_a_failed_check_is_skipped_all_the_way_down():
    def failed(subject):
        return [ok("one thing"), error("another", "", "")]

    found = outcomes(
        Check("g", "first", failed),
        Check("g", "second", fine, needs=("first",)),
        Check("g", "third", fine, needs=("second",)),
        Check("g", "fourth", fine),
    )
    assert [one.result.value for one in found.values()] == ["error", "skipped", "skipped", "ok"]
    assert found["third"].findings[0].found == "'second' has to be well first"


def test_what_rests_on_a_check_that_has_nothing_to_look_at_is_made():
    found = outcomes(
        Check("g", "first", fine, unless=lambda subject: "no such thing"),
        Check("g", "second", fine, needs=("first",)),
        Check("g", "third", lambda subject: [warning("w", "", ""), note("n"), skipped("s")], needs=("second",)),
    )
    assert [one.result.value for one in found.values()] == ["skipped", "ok", "warning"]


def test_user_code_on_the_main_thread_is_interrupted_when_its_time_is_up(mute):
    def hang(subject):
        try:
            with socket.create_connection(("127.0.0.1", mute)) as connection:
                connection.recv(1)
        except Exception:  # noqa: BLE001 (as modules do)
            return [ok("swallowed")]
        return [ok("never")]

    began = time.monotonic()
    found = outcomes(Check("g", "import", hang, timeout_s=0.2, is_first=True))
    assert time.monotonic() - began < 3
    assert found["import"].findings[0].found == "it did not end within 0.2 s"


def test_every_check_of_the_table_has_a_name_of_its_own_and_needs_what_stands_before_it():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for place, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:place]), check.name
        assert not check.is_first or all(CHECKS[names.index(name)].is_first for name in check.needs)
