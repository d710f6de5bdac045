"""What connections through an SDK have in common: importing and opening take seconds, and the loop must not stand still meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from typing import Self

from agentflow.api.chat_models import BaseChatModelConnection
from agentflow.errors import NotConfigured
from agentflow.integrations.header_values import SENT_VALUES, unsendable
from agentflow.integrations.provider_errors import missing_package


class SdkConnection(BaseChatModelConnection):
    """A connection that opens while others wait for it."""

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """Make the client; what ``stack`` holds is closed with the connection.

        Raises:
            NotConfigured: The SDK is not installed, or something is missing that it needs.
        """
        raise NotImplementedError(f"{type(self).__qualname__}.connect()")

    async def open(self) -> None:
        """Make the client, with one pool of connections.

        Raises:
            NotConfigured: The key, or a header, cannot be sent, and as `connect`.
        """
        given = {"api_key": getattr(self, "api_key", ""), **getattr(self, "default_headers", {})}
        if wrong := unsendable(given):
            raise NotConfigured(
                f"'{wrong}' of {self!r} cannot be sent in a header of HTTP",
                expected=SENT_VALUES,
                fix=f"look at what '{wrong}' is, or leads to",
            )
        async with contextlib.AsyncExitStack() as stack:
            await self.connect(stack)
            self._held = stack.pop_all()

    async def close(self) -> None:
        """End its connections."""
        if (opening := self.__dict__.get("_opening")) is not None:
            await asyncio.wait([opening])
        if "_held" in self.__dict__:
            await self._held.aclose()

    async def _open_alone(self) -> Self:
        """Open it outside an engine: all who ask wait for the same opening; one that failed is tried again."""
        opening: asyncio.Task[None] | None = self.__dict__.get("_opening")
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self.__dict__["_opening"] = asyncio.create_task(self.open())
        if not opening.done():
            await asyncio.shield(opening)
        return self


async def load(extra: str, *modules: str) -> None:
    """Import the modules of an SDK, which comes with an extra of agentflow, in a thread.

    Raises:
        NotConfigured: It is not installed.
    """
    try:
        await asyncio.to_thread(_import, modules)
    except ModuleNotFoundError as error:
        raise missing_package(extra, f"package '{error.name or modules[0]}'") from None


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        importlib.import_module(module)
