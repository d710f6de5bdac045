"""Waiting until something changes in a directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from agentflow.connectors.follow.places import Root
from agentflow.errors import NotConfigured, SourceError

_STEP_MS = 20  # how often the watch looks whether the system told of a change; also how soon it ends
_GROUPED_MS = 100


def check_watching() -> None:
    """Refuse to watch where the package for it is missing.

    Raises:
        NotConfigured: It is not installed.
    """
    try:
        import watchfiles  # noqa: F401 (found)
    except ImportError as error:
        raise NotConfigured(
            "files cannot be followed: the package watchfiles is not installed",
            expected="the extra 'follow', or files that are looked at regularly",
            fix="pip install 'agentflow[follow]', or set poll-interval: 1s (in code: poll_interval=\"1s\")",
        ) from error


class DirectoryWatch:
    """Tells when something changes in directories. A thread of its own waits for that.

    It begins to see changes a moment after `watch` has returned, and sees none on file systems that tell of none (NFS, SMB, some mounts
    of containers).

    Args:
        on_change: Called in that thread.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._roots: list[Root] = []
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._failure: Exception | None = None

    def watch(self, roots: Sequence[Root]) -> bool:
        """Watch these directories from now on; return whether that is another set than before, or the old names lead elsewhere.

        Raises:
            SourceError: They cannot be watched.
        """
        if self._failure is not None:
            failure, self._failure, self._roots = self._failure, None, []
            if not isinstance(failure, FileNotFoundError):
                raise SourceError(
                    f"the directories cannot be watched: {failure}",
                    where={"directories": ", ".join(root.path for root in roots)},
                    expected="a file system that tells of changes, and watches that are left (fs.inotify.max_user_watches)",
                    fix="set poll-interval: 1s, which looks regularly instead",
                ) from failure
        there = [root for root in roots if root.key is not None]
        if there == self._roots:
            return False
        self.close()
        self._roots = there
        if there:
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(there, self._stop), name="agentflow-follow", daemon=True
            )
            self._thread.start()
        return True

    def close(self) -> None:
        """Watch nothing any more; blocks for a moment."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._roots = []

    def _run(self, roots: list[Root], stop: threading.Event) -> None:
        from watchfiles import watch

        try:
            for _ in watch(
                *(root.path for root in roots),
                watch_filter=None,
                debounce=_GROUPED_MS,
                step=_STEP_MS,
                stop_event=stop,
                raise_interrupt=False,
                recursive=any(root.is_deep for root in roots),
                ignore_permission_denied=True,
            ):
                self._on_change()
        except (OSError, RuntimeError) as error:  # RuntimeError: what the package raises for what it does not expect
            if not stop.is_set():
                self._failure = error
                self._on_change()
