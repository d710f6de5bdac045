"""What an awaited call comes to, told from the end of the coroutine that awaits it."""

from __future__ import annotations

import asyncio


def is_outcome(error: BaseException) -> bool:
    """Return whether an error that came out of an awaited call is what the call came to, and not the end of who awaits it.

    That ends by KeyboardInterrupt, by GeneratorExit, and by CancelledError where its task was cancelled. Where nobody has cancelled it,
    something was that the call awaited.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, (KeyboardInterrupt, GeneratorExit))
