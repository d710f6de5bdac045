"""Prompts: a text or messages with ``{name}`` placeholders.

A placeholder is an identifier in braces. ``{{name}}`` is a literal ``{name}``; braces around anything else, such as JSON, stay as they
are. A placeholder without a value is an error, never a silent gap in what a model is told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from agentflow.api.chat_messages import ChatMessage, MessageRole, TextPart, read_messages
from agentflow.api.resources import Resource, ResourceType
from agentflow.errors import MissingPromptVariable, NotConfigured

_PLACEHOLDER: Final = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


class Prompt(Resource):
    """A prompt: of one text, of messages, or of a file with either.

    Attributes:
        text: One text; `format_messages` makes one message of it.
        messages: Messages; their texts have placeholders, everything else of them is kept.
        path: File with either: ``.json``, ``.yaml`` or ``.yml`` hold a list of messages (``role``, ``content``), any other file is the text. It
            is read again when it has changed.
    """

    text: str | None = None
    messages: list[ChatMessage] = []
    path: str | None = None

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        return ResourceType.PROMPT

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return a prompt of one text."""
        return cls(text=text)

    @classmethod
    def from_messages(cls, messages: Sequence[ChatMessage]) -> Self:
        """Return a prompt of messages."""
        return cls(messages=list(messages))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Return the prompt in a file, which is read when it is used."""
        return cls(path=str(path))

    @property
    def digest(self) -> str:
        """Hash of the prompt as it is now, 16 hex digits; it is in the journal and in traces."""
        return hashlib.blake2b(msgspec.msgpack.encode(self._content()), digest_size=8).hexdigest()

    def format_string(self, /, **values: Any) -> str:  # noqa: ANN401 (whatever has a text)
        """Return the prompt as one text; messages as lines ``role: text``.

        Raises:
            MissingPromptVariable: A placeholder has no value.
            NotConfigured: There is no file at `path`, or it holds no prompt.
        """
        content = self._content()
        if isinstance(content, str):
            return self._filled(content, values)
        return "\n".join(f"{message.role}: {message.text}" for message in self.messages_of(MessageRole.SYSTEM, values))

    def format_messages(self, /, role: str = MessageRole.SYSTEM, **values: Any) -> list[ChatMessage]:  # noqa: ANN401
        """Return the prompt as messages; one text as one message of ``role``. A placeholder ``{role}`` is a matter for `messages_of`.

        Raises:
            MissingPromptVariable: A placeholder has no value.
            NotConfigured: There is no file at `path`, or it holds no prompt.
        """
        return self.messages_of(role, values)

    def messages_of(self, role: str, values: Mapping[str, Any]) -> list[ChatMessage]:
        """Return the prompt as messages, with values of whatever names; see `format_messages`."""
        content = self._content()
        if isinstance(content, str):
            return [ChatMessage(role, self._filled(content, values))]
        return [self._filled_message(message, values) for message in content]

    def _filled_message(self, message: ChatMessage, values: Mapping[str, Any]) -> ChatMessage:
        parts = [
            msgspec.structs.replace(part, text=self._filled(part.text, values)) if isinstance(part, TextPart) else part
            for part in message.parts
        ]
        return msgspec.structs.replace(message, content=self._filled(message.content, values), parts=parts)

    def _filled(self, text: str, values: Mapping[str, Any]) -> str:
        def value_of(match: re.Match[str]) -> str:
            literal, name = match.groups()
            if literal is not None:
                return f"{{{literal}}}"
            if name not in values:
                raise MissingPromptVariable(name, self.name or self.path or "", tuple(sorted(values)))
            return str(values[name])

        return _PLACEHOLDER.sub(value_of, text)

    def _content(self) -> str | list[ChatMessage]:
        if self.path is not None:
            return self._read(self.path)
        return self.messages if self.text is None else self.text

    def _read(self, path: str) -> str | list[ChatMessage]:
        kept: tuple[tuple[int, int], str | list[ChatMessage]] | None = self.__dict__.get("_kept")
        try:
            stat = Path(path).stat()
            version = (stat.st_mtime_ns, stat.st_size)
            if kept is None or kept[0] != version:
                kept = self.__dict__["_kept"] = (version, _read_file(Path(path)))
        except OSError as error:
            raise NotConfigured(
                f"the file of a prompt cannot be read: {error.strerror}",
                where={"path": Path(path).absolute()},
                expected="a text, or messages in .json or .yaml",
                fix="a relative path begins in the directory of the process",
            ) from None
        return kept[1]


def _read_file(path: Path) -> str | list[ChatMessage]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return _messages(msgspec.json.decode(text))
        if path.suffix.lower() in (".yaml", ".yml"):
            return _messages(msgspec.yaml.decode(text))
    except ValueError as error:  # not UTF-8, not JSON, not YAML, or no messages
        raise NotConfigured(
            f"the file of a prompt does not hold one: {error}",
            where={"path": path},
            expected="UTF-8; in .json and .yaml a list of messages: [{role: system, content: You are …}]",
            fix="correct it, or name it .txt or .md if it is a text",
        ) from None
    return text.removesuffix("\n")


def _messages(values: object) -> list[ChatMessage]:
    """Return messages as a person has written them: what is misspelt is no silent gap."""
    if not isinstance(values, list):
        raise ValueError(f"it is no list, but {type(values).__name__}")  # noqa: TRY004 (of a file, not of a caller)
    for place, value in enumerate(values):
        if isinstance(value, dict):
            if unknown := sorted(map(str, value.keys() - set(ChatMessage.__struct_fields__))):
                raise ValueError(f"message {place + 1} has the unknown field {unknown[0]!r}")
            if (role := value.get("role", MessageRole.USER)) not in list(MessageRole):
                raise ValueError(f"message {place + 1} has the role {role!r}; there are {', '.join(MessageRole)}")
        elif not isinstance(value, str):
            raise ValueError(f"message {place + 1} is no message, but {value!r}")  # noqa: TRY004 (as above)
    return read_messages(values)
