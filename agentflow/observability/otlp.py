"""OTLP over HTTP: sends encoded metrics and spans to a collector, as OpenTelemetry's variables say.

The SDK's exporters do the same for their own data, whose encoding takes 20 µs of the interpreter for each span: a percent of all runs
traced would cost a twentieth of the throughput. What they add to a POST is little, and is here.
"""

from __future__ import annotations

import gzip
import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

_DEFAULT_ENDPOINT = "http://localhost:4318"
_TIMEOUT_S = 10.0
_BUSY = (429, 502, 503, 504)
_COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}
Signal = Literal["logs", "metrics", "traces"]


def endpoint_of(base: str | None, signal: Signal) -> str:
    """Return where a signal goes: below the base URL of the settings, else as OpenTelemetry's variables say, else to this machine."""
    if base is None:
        own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
        if own:
            return own
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT_ENDPOINT
    return f"{base.rstrip('/')}/v1/{signal}"


class Refusal(NamedTuple):
    """Why a request was not taken.

    Attributes:
        reason: For people.
        is_passing: To try again may help.
        wait_s: When to, at the earliest.
    """

    reason: str
    is_passing: bool
    wait_s: float = 0.0


class OtlpSender:
    """Sends one signal, from one thread at a time.

    Args:
        signal: Which one.
        base: Base URL of the collector; None: as the variables say.

    Attributes:
        url: Where it goes.

    Raises:
        ValueError: The URL is none, or a variable says something that cannot be done.
        OSError: A certificate cannot be read.
    """

    def __init__(self, signal: Signal, base: str | None) -> None:
        def variable(name: str, default: str = "") -> str:
            prefix = "OTEL_EXPORTER_OTLP"
            return os.environ.get(f"{prefix}_{signal.upper()}_{name}") or os.environ.get(f"{prefix}_{name}") or default

        self.url = endpoint_of(base, signal)
        if not self.url.startswith(("http://", "https://")):
            msg = f"a collector is named by a URL, such as {_DEFAULT_ENDPOINT}, not {self.url!r}"
            raise ValueError(msg)
        self._timeout_s = float(
            variable("TIMEOUT", str(_TIMEOUT_S))
        )  # seconds, as in OpenTelemetry's own Python exporters
        compression = variable("COMPRESSION", "none").strip().lower()
        if compression not in _COMPRESSIONS:
            msg = f"OTEL_EXPORTER_OTLP_COMPRESSION is none, gzip or deflate, not {compression!r}"
            raise ValueError(msg)
        self._compress = _COMPRESSIONS[compression]
        self._headers = {"Content-Type": "application/x-protobuf", "User-Agent": "agentflow"}
        if compression != "none":
            self._headers["Content-Encoding"] = compression
        for pair in variable("HEADERS").split(","):
            name, is_given, value = pair.partition("=")
            if is_given:
                self._headers[name.strip()] = urllib.parse.unquote(value.strip())
        context = ssl.create_default_context(cafile=variable("CERTIFICATE") or None)
        if own := variable("CLIENT_CERTIFICATE"):
            context.load_cert_chain(own, variable("CLIENT_KEY") or None)
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def send(self, body: bytes) -> Refusal | None:
        """Send a request, once; return None when the collector has it, else why not. Blocks as long as the timeout says at most."""
        request = urllib.request.Request(self.url, self._compress(body), self._headers)  # noqa: S310 (the URL of the settings)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            with error:
                after = error.headers.get("Retry-After", "")
            wait_s = float(after) if after.strip().isdecimal() else 0.0
            return Refusal(f"it answers {error.code} {error.reason}", error.code in _BUSY, wait_s)
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
        ) as error:  # refused, too late, no such host; nonsense; not a URL
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            return Refusal(reason, not isinstance(error, ValueError))
        return None
