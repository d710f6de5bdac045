"""How a client of an MCP server says who it is, and what must not be seen of it."""

from __future__ import annotations

import base64
import re
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from agentflow.api.references import MASK, written_forms

_SECRET_NAME = re.compile(r"auth|cookie|credential|key|pass|secret|token", re.IGNORECASE)
_TOKENS_KEPT = 4  # those that were renewed: an answer that is late may still speak of one


class _Auth(msgspec.Struct, frozen=True, tag_field="type"):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({MASK})"

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen."""
        return ()


class BearerTokenAuth(_Auth, frozen=True, tag="bearer"):
    """A token that does not change: ``Authorization: Bearer …``; in a descriptor ``{"type": "bearer", "token": …}``."""

    token: str

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"Authorization": f"Bearer {self.token}"}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen."""
        return (self.token,)


class BasicAuth(_Auth, frozen=True, tag="basic"):
    """A user and a password; in a descriptor ``{"type": "basic", "username": …, "password": …}``."""

    username: str
    password: str

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {"Authorization": f"Basic {basic_credentials(self.username, self.password)}"}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen."""
        return (self.password, basic_credentials(self.username, self.password))


class ApiKeyAuth(_Auth, frozen=True, tag="api_key"):
    """A key in a header; in a descriptor ``{"type": "api_key", "key": …}``.

    Attributes:
        key: The key.
        header: Name of the header.
    """

    key: str
    header: str = "X-API-Key"

    @property
    def headers(self) -> dict[str, str]:
        """What each request carries."""
        return {self.header: self.key}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen."""
        return (self.key,)


class OAuthClientCredentials(_Auth, frozen=True, tag="oauth"):
    """OAuth 2.1 for a service: the grant ``client_credentials``; in a descriptor ``{"type": "oauth", "token_url": …, …}``.

    The token is kept, renewed shortly before it expires, and once more when the server refuses it (401). The credentials are sent to
    ``token_url`` and nowhere else, whatever a server says about who gives its tokens.

    Attributes:
        token_url: Token endpoint of the authorization server.
        client_id: Who asks.
        client_secret: Its proof; sent as HTTP Basic, which every such server takes.
        scope: What is asked for, separated by spaces.
        resource: The MCP server that the token is for (RFC 8707), where the authorization server wants to know.
    """

    token_url: str
    client_id: str
    client_secret: str
    scope: str = ""
    resource: str = ""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen."""
        return (self.client_secret, basic_credentials(self.client_id, self.client_secret))


Auth = BearerTokenAuth | BasicAuth | ApiKeyAuth | OAuthClientCredentials


def basic_credentials(username: str, password: str) -> str:
    """Return what follows ``Authorization: Basic``."""
    return base64.b64encode(f"{username}:{password}".encode()).decode()


class Secrets:
    """Credentials of one server; `mask` takes them out of a text.

    Args:
        auth: Its credentials; all of them are secret.
        named: Headers and environment variables; those are secret whose name sounds like it.
    """

    def __init__(self, auth: Auth | None, *named: Mapping[str, str]) -> None:
        sounding = [value for values in named for name, value in values.items() if _SECRET_NAME.search(name)]
        fixed = (*(auth.secrets if auth else ()), *sounding, *_without_scheme(sounding))
        self._fixed = {form for value in fixed for form in written_forms(value)}
        self._tokens: deque[set[str]] = deque(maxlen=_TOKENS_KEPT)  # each in all of its forms

    def add_token(self, token: str) -> None:
        """Keep a token secret that the server of tokens has given."""
        self._tokens.append(written_forms(token))

    def mask(self, text: str) -> str:
        """Return a text without any of them."""
        for secret in sorted(self._fixed.union(*self._tokens), key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text


def _without_scheme(values: Iterable[str]) -> list[str]:
    """Return ``abc`` of ``Bearer abc``: it may be echoed without the scheme."""
    return [value.strip().rpartition(" ")[2] for value in values]
