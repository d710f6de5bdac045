"""A server that speaks S3, in the process of the tests, and what can go wrong with it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

from agentflow.connectors.object_store import ObjectStore
from agentflow.runtime.settings import ObjectStoreSettings

Trouble = Callable[[str, str], int | None]
"""Looks at method and path of a request; returns the status of an answer that is given instead, or None: nothing is wrong.

A negative status is given although the request is carried out.
"""


class S3Server:
    """S3 on this machine.

    Attributes:
        trouble: Looks at each request.
        requests: Methods and paths of all requests.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.trouble: Trouble | None = None
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._port = 0
        self.start()

    def start(self) -> None:
        """Listen; the second time on the same port, with everything that was there."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Go away; objects stay."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def settings(self) -> ObjectStoreSettings:
        return ObjectStoreSettings(
            endpoint=self.endpoint,
            region="us-east-1",
            access_key_id="test",
            secret_access_key="test",
            timeout_ms=5_000,
            retry_timeout_ms=2_000,
        )

    def new_bucket(self) -> str:
        """Make a bucket of this test alone; return its URL."""
        import boto3

        name = f"test-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def store(self, url: str) -> ObjectStore:
        """Return a store of a URL."""
        return ObjectStore(url, self.settings)

    @contextmanager
    def troubled(self, trouble: Trouble) -> Iterator[None]:
        """Let something be wrong for a while."""
        self.trouble = trouble
        try:
            yield
        finally:
            self.trouble = None

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        status = self.trouble(method, path) if self.trouble is not None else None
        if status is None:
            return self._application(environ, start_response)
        if status < 0:
            b"".join(self._application(environ, lambda *_: lambda _: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{abs(status)} Trouble", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"]
