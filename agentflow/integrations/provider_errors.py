"""What goes wrong between an adapter of a chat model and its provider, in agentflow's words; used by the adapters beside it."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Collection, Mapping
from typing import Final

from agentflow.api.chat_models import ChatRequest
from agentflow.errors import (
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelRejected,
    ModelUnavailable,
    NotConfigured,
    RateLimited,
)

_TEXT_MAX: Final = 2_000
_MAY_PASS: Final = frozenset({408, 409, 424, 425})  # beside 5xx; 424: Bedrock's word for a model that failed
_TOO_LONG: Final = re.compile(
    r"(?i)prompt is too long|input is too long|context.{0,20}(?:length|window|limit)|exceeds? the (?:maximum|model)[\w ]* tokens?"
    r"|too many (?:input )?tokens|maximum number of tokens"
)  # the providers have no code for it
_REFUSED: Final = re.compile(r"(?i)content[ _-](?:filter|policy|management)|blocked by content|usage polic")


class Failures:
    """Makes the errors of one call.

    Args:
        provider: Of the connection.
        request: What was asked.
        secrets: Credentials of the connection: no error shows them.
    """

    def __init__(self, provider: str, request: ChatRequest, secrets: Collection[str | None] = ()) -> None:
        self._provider = provider
        self._request = request
        self._secrets = [secret for secret in secrets if secret]

    def of(
        self, kind: type[ModelError], what: object, status: int | None = None, retry_after_s: float | None = None
    ) -> ModelError:
        """Return an error of a known kind."""
        text = str(what).strip() or "the provider does not say what went wrong"
        for secret in self._secrets:
            text = text.replace(secret, "***")
        key = self._request.idempotency_key
        return kind(text[:_TEXT_MAX], self._provider, self._request.model, status, retry_after_s, key)

    def of_status(self, status: int, what: object, headers: Mapping[str, str] | None = None) -> ModelError:
        """Return the error that an HTTP status and the provider's words stand for."""
        return self.of(kind_of(status, str(what)), what, status, retry_after_s(headers or {}))

    def unreachable(self, error: BaseException) -> ModelError:
        """Return the error of a call that got no answer."""
        cause = error.__cause__ or error
        said = str(cause)
        text = f"the provider cannot be reached: {type(cause).__name__}{f': {said}' if said else ''}"
        return self.of(ModelUnavailable, text)

    def timed_out(self, timeout_s: float) -> ModelError:
        """Return the error of a call whose provider was silent for too long."""
        return self.of(ModelUnavailable, f"the provider said nothing for {timeout_s:g} s")

    def unreadable(self, error: object) -> ModelError:
        """Return the error of an answer that cannot be decoded."""
        return self.of(ModelUnavailable, f"the answer cannot be read: {error}")

    def cut(self) -> ModelError:
        """Return the error of a stream without an end."""
        return self.of(ModelUnavailable, "the answer ended before its end")


def kind_of(status: int, text: str) -> type[ModelError]:
    """Return the class of error for an HTTP status and what the provider says with it."""
    if status == 429 or status >= 500 or status in _MAY_PASS:
        return RateLimited if status == 429 else ModelUnavailable
    if status in {400, 413} and _TOO_LONG.search(text):
        return ContextTooLong
    if status in {400, 403} and _REFUSED.search(text):
        return ContentRefused
    return ModelRejected


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long a provider says to wait: seconds, milliseconds or a date; None: it says nothing that can be read."""
    try:
        if said := headers.get("retry-after-ms"):
            return max(0.0, float(said) / 1_000)
        if not (said := headers.get("retry-after")):
            return None
        if said[:1].isdigit():
            return float(said)
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def missing_package(extra: str, package: str = "its SDK") -> NotConfigured:
    """Return the error of a connection without a package that comes with an extra of agentflow."""
    return NotConfigured(
        f"a connection cannot be opened: {package} is not installed", fix=f"pip install 'agentflow[{extra}]'"
    )
