"""What a step is called by and what it leaves: function ids, digests of arguments, results and errors as bytes.

A result comes back as the type that the function declares; where it declares none, only what msgpack carries unchanged is
taken, because anything else would be one thing in the first life and another one after a crash.
"""

from __future__ import annotations

import functools
import hashlib
import textwrap
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from agentflow.api.callables import innermost
from agentflow.api.encoding import text_of, user_traceback
from agentflow.errors import (
    AgentflowError,
    BudgetExhausted,
    CircuitOpen,
    ContentRefused,
    ContextTooLong,
    InDoubt,
    MissingPromptVariable,
    ModelError,
    ModelRejected,
    ModelUnavailable,
    NotRecordable,
    RateLimited,
    StepFailed,
)

_IN_DOUBT = f"{InDoubt.__module__}.{InDoubt.__qualname__}"
_PLAIN = (bool, int, float, str, bytes)


class StepError(msgspec.Struct, array_like=True):
    """An error that a step raised. New fields go to the end, with a default.

    Attributes:
        type: Module and qualified name of its class.
        text: Its text.
        args: Its arguments, encoded; None where they cannot be.
        traceback: The user's part of it, as text.
    """

    type: str
    text: str
    args: bytes | None
    traceback: str


def _encode_foreign(value: Any) -> Any:  # noqa: ANN401 (whatever a user passes)
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"a {type(value).__qualname__} cannot be encoded")


def _encode_argument(value: Any) -> Any:  # noqa: ANN401 (whatever a user passes)
    if callable(value) and hasattr(value, "__qualname__"):
        return function_id(value)
    return _encode_foreign(value)


def _decode_foreign(expected: type, value: Any) -> Any:  # noqa: ANN401 (a declared type)
    validate = getattr(expected, "model_validate", None)
    if validate is not None:
        return validate(value)
    raise TypeError(f"a {expected.__qualname__} cannot be decoded")


_encode_arguments = msgspec.msgpack.Encoder(enc_hook=_encode_argument, order="deterministic").encode
_encode_result = msgspec.msgpack.Encoder(enc_hook=_encode_foreign).encode
_encode_plain = msgspec.msgpack.Encoder().encode
_decode_plain = msgspec.msgpack.Decoder().decode
_decode_error = msgspec.msgpack.Decoder(StepError).decode


@functools.lru_cache(maxsize=4096)
def _id_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", None)
    if name is None:  # an object that can be called
        function = type(function)
        name = function.__qualname__
    return f"{function.__module__}.{name}"


def function_id(function: Callable[..., Any]) -> str:
    """Return what a function is called by in the journal: module and qualified name."""
    try:
        return _id_of(innermost(function))
    except TypeError:  # not hashable
        return _id_of(type(function))  # type: ignore[arg-type]


def digest(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return the digest of a call's arguments, those that `functools.partial` holds included.

    Raises:
        NotRecordable: An argument has no canonical form.
    """
    while isinstance(function, functools.partial):
        args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
    try:
        encoded = _encode_arguments((args, kwargs))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise NotRecordable(
            f"step {function_id(function)}: its arguments cannot be recorded ({error})",
            fix="pass plain values, dataclasses, msgspec Structs or pydantic models, and bind clients by a method or closure",
        ) from None
    return hashlib.blake2b(encoded, digest_size=16).digest()


@functools.lru_cache(maxsize=4096)
def _decoder(function: Callable[..., Any]) -> msgspec.msgpack.Decoder[Any] | None:
    try:
        declared = typing.get_type_hints(function).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return None
    return None if declared is Any else msgspec.msgpack.Decoder(declared, dec_hook=_decode_foreign)


def result_decoder(function: Callable[..., Any]) -> Callable[[bytes], Any] | None:
    """Return what decodes the results of a function to its declared type; None where it declares none.

    Raises:
        NotRecordable: The declared type cannot be decoded.
    """
    try:
        decoder = _decoder(innermost(function))
    except TypeError as error:
        raise NotRecordable(
            f"step {function_id(function)}: its declared result cannot come back from the journal ({error})"
        ) from None
    return None if decoder is None else decoder.decode


def encode_result(function: Callable[..., Any], result: Any) -> bytes:  # noqa: ANN401 (a user's value)
    """Return a result as bytes that come back as what it is.

    Raises:
        NotRecordable: It does not come back as what it is.
    """
    decode = result_decoder(function)
    if decode is None and not _is_plain(result):
        raise NotRecordable(
            f"step {function_id(function)} returned a {type(result).__qualname__} that would come back as something else",
            expected="None, bool, int, float, str, bytes, list, dict",
            fix="declare the return type of the function, or return one of these",
        )
    try:
        encoded = _encode_result(result)
        (decode or _decode_plain)(encoded)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.ValidationError) as error:
        raise NotRecordable(
            f"step {function_id(function)} returned a {type(result).__qualname__} that cannot be recorded: {error}"
        ) from None
    return encoded


def decode_result(function: Callable[..., Any], payload: bytes) -> Any:  # noqa: ANN401 (a user's value)
    """Return a recorded result.

    Raises:
        TypeError, msgspec.ValidationError: The declared type has changed meanwhile, and the result is not of it.
    """
    return (result_decoder(function) or _decode_plain)(payload)


_REBUILT: Final = frozenset(
    {
        BudgetExhausted,
        CircuitOpen,
        ContentRefused,
        ContextTooLong,
        MissingPromptVariable,
        ModelError,
        ModelRejected,
        ModelUnavailable,
        RateLimited,
    }
)
"""Errors of ours that come back as what they are: their arguments say all."""

_OF_MODELS: Final = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _REBUILT}


def _is_plain(value: object) -> bool:
    kind = type(value)
    if value is None or kind in _PLAIN:
        return True
    if kind is list:
        return all(map(_is_plain, value))  # type: ignore[call-overload]
    if kind is dict:
        return all(type(key) in _PLAIN and _is_plain(inner) for key, inner in value.items())  # type: ignore[attr-defined]
    return False


def encode_error(error: BaseException) -> bytes:
    """Return an error as bytes; one that stands for another one, as that."""
    if isinstance(error, StepFailed):
        return _encode_plain(StepError(error.original, error.original_text, None, user_traceback(error)))
    try:
        args = _encode_plain(error.args) if all(map(_is_plain, error.args)) else None
    except (TypeError, ValueError, OverflowError):
        args = None
    kind = type(error)
    type_name = f"{kind.__module__}.{kind.__qualname__}"
    return _encode_plain(StepError(type_name, text_of(error), args, user_traceback(error)))


def describe_error(payload: bytes) -> str:
    """Return a recorded error as one line."""
    error = _decode_error(payload)
    return f"{error.type.removeprefix('builtins.')}: {error.text}".splitlines()[0]


def decode_error(payload: bytes, known: typing.Mapping[str, type[Exception]]) -> Exception:
    """Return a recorded error: of its own class where that is known, else `StepFailed`.

    A note tells where the step raised it: the traceback of what is returned is that of the await alone.
    Classes are never imported by a stored name: ``known`` are Python's own and those that the agent declares.
    """
    error = _decode_error(payload)
    found = _rebuilt(error, known)
    if error.traceback:
        found.add_note("In the step:\n" + textwrap.indent(error.traceback.rstrip(), "  "))
    return found


def _rebuilt(error: StepError, known: typing.Mapping[str, type[Exception]]) -> Exception:
    if error.type == _IN_DOUBT:
        return InDoubt(error.text.partition("\n")[0])
    kind = known.get(error.type) or _OF_MODELS.get(error.type)
    if kind is not None and error.args is not None and (kind in _REBUILT or not issubclass(kind, AgentflowError)):
        try:
            found: Exception = kind(*_decode_plain(error.args))
            return found
        except TypeError:  # it takes other arguments than those that it keeps
            pass
    return StepFailed(
        f"{error.type}: {error.text}", original=error.type, original_text=error.text, traceback=error.traceback
    )
