"""Results of requests as rows of keyed state, kept for a while behind the end of their run.

A request is named by its id, where it has one, and else by its run: ``requests/<life>/<id>/<number>``, ``requests/<life>/<number>``.
"""

from __future__ import annotations

import hashlib

import msgspec

from agentflow.core.delta import check_format
from agentflow.core.records import ErrorReport, Record

REQUESTS = "requests"
"""First part of the run ids of requests; the position of that label counts the lives of the job."""
REQUESTS_PREFIX = "requests/"
RESULT_FORMAT = 1
_STAMPED = b"\x01"  # as a memory value with a time to live
_STAMP_END = 9


class RequestResult(msgspec.Struct, array_like=True):
    """How the run of a request ended. New fields go to the end, with a default.

    Attributes:
        format: Version of this struct.
        run_id: The run.
        outputs: Encoded outputs, in order; None: an output without a value.
        failure: Why the run ended early; None: it did not.
        fingerprint: Of key and input, to tell another request with the same id.
        ended_ms: When the run ended, epoch milliseconds.
    """

    format: int
    run_id: str
    outputs: list[bytes | None]
    failure: ErrorReport | None
    fingerprint: bytes
    ended_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RequestResult).decode


def request_source(life: int, request_id: str | None) -> str:
    """Return the source label of a request's record."""
    return f"{REQUESTS}/{life}" if request_id is None else f"{REQUESTS}/{life}/{request_id}"


def request_id_of(run_id: str) -> str | None:
    """Return the id of the request behind a run; None: it has none, or the run is not of a request."""
    label, _, rest = run_id.partition("/")
    _, _, rest = rest.partition("/")  # the life
    request_id, slash, _ = rest.rpartition("/")
    return request_id if slash and label == REQUESTS else None


def life_of(source: str) -> int:
    """Return the life of the job in which a request was admitted, by the source label of its record."""
    return int(source.split("/", 2)[1])


def result_name(run_id: str) -> str:
    """Return the name of the row that has the result of a run."""
    request_id = request_id_of(run_id)
    return run_id if request_id is None else f"id/{request_id}"


def result_name_of_id(request_id: str) -> str:
    """Return the name of the row that has the result of a request."""
    return f"id/{request_id}"


def fingerprint(key: bytes, value: bytes | None) -> bytes:
    """Return what tells two requests with the same id apart."""
    return hashlib.blake2b(b"%d " % len(key) + key + (value or b""), digest_size=8).digest()


def encode_result(
    record: Record, key: bytes, outputs: list[bytes | None], failure: ErrorReport | None, ended_ms: int
) -> bytes:
    """Return the row of a result, stamped with the time at which its run ended."""
    result = RequestResult(RESULT_FORMAT, record.run_id, outputs, failure, fingerprint(key, record.value), ended_ms)
    return _STAMPED + ended_ms.to_bytes(8, "big") + _encode(result)


def decode_result(stored: bytes) -> RequestResult:
    """Read the row of a result.

    Raises:
        StateVersionTooNew: It was written by a newer version.
    """
    result = _decode(memoryview(stored)[_STAMP_END:])
    check_format("the result of a request", result.format, RESULT_FORMAT)
    return result
