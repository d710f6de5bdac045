"""The way into a running job for inputs that no source gives again: each request once, as far as anybody can tell."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from agentflow.core.records import Headers, Record
from agentflow.core.results import RequestResult, decode_result, fingerprint, result_name_of_id
from agentflow.errors import RecordTooLarge
from agentflow.runtime.ports import Clock
from agentflow.runtime.requests import OpenRequest, RequestTable, mismatch
from agentflow.runtime.settings import JobSettings

REQUEST_ID_CHARS_MAX = 500
_NOT_IN_IDS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Intake:
    """Submits inputs, or finds what is known of their requests.

    Args:
        table: Open requests.
        find_result: Returns the kept result of an agent by its name, as keyed state has it.
        settings: The job's settings.
        clock: Tells whether a kept result is still to be had.
        waits: Whether callers wait at a limit; else they are refused.
    """

    def __init__(
        self,
        table: RequestTable,
        find_result: Callable[[int, str], bytes | None],
        settings: JobSettings,
        clock: Clock,
        *,
        waits: bool,
    ) -> None:
        self._table = table
        self._find_result = find_result
        self._record_max = settings.record_max_bytes
        self._retention_ms = settings.request_id.retention_ms
        self._clock = clock
        self._waits = waits

    def enter(
        self,
        agent: int,
        key: bytes,
        value: bytes,
        request_id: str | None,
        headers: Headers = (),
        *,
        is_sent: bool = False,
        has_room: bool = False,
    ) -> OpenRequest | RequestResult | None:
        """Submit an input, or find what is known of its request; None: there is no room, and callers wait (`enter_later`).

        Args:
            agent: Place of the agent.
            key: Canonical encoding of the key.
            value: Encoded input.
            request_id: Id of the request; None: it is a new one.
            headers: Of the input.
            is_sent: Its answer is kept, and its caller wants to know when its input is durable.
            has_room: Its caller has waited for room.

        Raises:
            RecordTooLarge: Above `record-max`.
            EngineOverloaded, EngineClosed, RequestMismatch: See `RequestTable.submit`.
            TypeError: The request id cannot be one.
        """
        if len(value) > self._record_max:
            raise RecordTooLarge(
                f"the input has {len(value):,} bytes",
                expected=f"at most {self._record_max:,} bytes (record-max)",
                fix="send less, or raise record-max",
            )
        table, is_known = self._table, False
        if request_id is not None:
            _check_id(request_id)
            is_known = table.find_id(agent, request_id) is not None
            kept = None if is_known else self.kept(agent, result_name_of_id(request_id))
            if kept is not None:
                if kept.fingerprint != fingerprint(key, value):
                    raise mismatch(request_id)
                return kept
        if self._waits and not (has_room or is_known) and table.is_full and not table.is_closed:
            return None
        return table.submit(
            agent, key, value, request_id, is_kept=is_sent, wants_receipt=is_sent, has_room=has_room, headers=headers
        )

    async def enter_later(
        self,
        agent: int,
        key: bytes,
        value: bytes,
        request_id: str | None,
        headers: Headers = (),
        *,
        is_sent: bool = False,
    ) -> OpenRequest | RequestResult:
        """Do as `enter` when there is room."""
        async with self._table.room():
            request = self.enter(agent, key, value, request_id, headers, is_sent=is_sent, has_room=True)
        assert request is not None
        return request

    def kept(self, agent: int, name: str) -> RequestResult | None:
        """Return a result that keyed state has, unless its time is over."""
        stored = self._find_result(agent, name)
        if stored is None:
            return None
        result = decode_result(stored)
        return None if result.ended_ms + self._retention_ms <= self._clock.now_ms() else result

    def accepting(self, read_key: Callable[[Record], bytes]) -> Callable[[bytes, str | None, Headers], Awaitable[str]]:
        """Return what takes the records of an `Ingress`: durable, as the id of the run, when it returns.

        Args:
            read_key: Reads the key of a record; raises DecodeError, MissingKey.
        """

        async def accept(value: bytes, request_id: str | None, headers: Headers) -> str:
            key = read_key(Record("ingress", 0, 0, value))
            request = self.enter(0, key, value, request_id, headers, is_sent=True)
            if request is None:
                request = await self.enter_later(0, key, value, request_id, headers, is_sent=True)
            if isinstance(request, OpenRequest):
                await request.accepted()
            return request.run_id

        return accept


def _check_id(request_id: object) -> None:
    if (
        not isinstance(request_id, str)
        or not 0 < len(request_id) <= REQUEST_ID_CHARS_MAX
        or _NOT_IN_IDS.search(request_id)
    ):
        msg = f"a request id is a text of 1 to {REQUEST_ID_CHARS_MAX} characters without control characters, not {request_id!r}"
        raise TypeError(msg)
