"""Content of MCP as text for a model, and as messages."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import msgspec
from mcp import types
from mcp.types import methods

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, Part, TextPart

Content = types.TextContent | types.ImageContent | types.AudioContent | types.EmbeddedResource | types.ResourceLink


def result_text(result: types.CallToolResult) -> str:
    """Return what a tool says: its structured content as JSON where there is any, else its texts; what is no text is noted."""
    if result.structured_content is None:
        return content_text(result.content)
    notes = [_text(part) for part in result.content if not isinstance(part, types.TextContent)]
    return "\n".join([msgspec.json.encode(result.structured_content).decode(), *notes])


def content_text(content: Sequence[Content]) -> str:
    """Return the texts of several contents, one behind the other; what is no text is noted."""
    return "\n".join(map(_text, content))


def prompt_message(message: types.PromptMessage) -> ChatMessage:
    """Return one message of a prompt.

    Raises:
        ValueError: Its content is not what the server says it is.
    """
    if isinstance(message.content, types.TextContent):
        return ChatMessage(message.role, message.content.text)
    return ChatMessage(message.role, parts=[_part(message.content)])


def remove_wrong_tools(result: dict[str, Any], version: str) -> list[tuple[str, str]]:
    """Take those tools out of a list that the protocol does not have; return their names, and what is wrong with them.

    Args:
        result: The result of any request, as it came; changed in place.
        version: Of the protocol.
    """
    listed = result.get("tools")
    if not isinstance(listed, list) or "content" in result:  # no list of tools, or what a tool says
        return []
    wrong = [(tool, why) for tool in listed if (why := _problem({**result, "tools": [tool]}, version))]
    if len(wrong) == len(listed) and _problem({**result, "tools": []}, version):
        return []  # it is the list that is wrong
    result["tools"] = [tool for tool in listed if all(tool is not other for other, _ in wrong)]
    return [(str(tool.get("name", "")) if isinstance(tool, dict) else repr(tool), why) for tool, why in wrong]


def _problem(listed: dict[str, Any], version: str) -> str:
    """Return what is wrong with a list of tools; empty: nothing."""
    try:
        methods.parse_server_result("tools/list", version, listed)
    except KeyError:
        return ""
    except ValueError as error:
        first: Any = next(iter(getattr(error, "errors", list)()), None)  # of pydantic
        return str(error) if first is None else ": ".join([*filter(None, [_path(first["loc"][2:])]), first["msg"]])
    return ""


def _path(steps: Sequence[object]) -> str:
    return ".".join(map(str, steps))


def argument_text(value: Any) -> str:  # noqa: ANN401 (whatever has a text)
    """Return an argument of a prompt: prompts take texts only."""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def _text(part: Content) -> str:
    match part:
        case types.TextContent():
            return part.text
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.EmbeddedResource(resource=resource):
            return f"[resource {resource.uri}, {resource.mime_type or 'unknown type'}]"
        case types.ResourceLink():
            return f"[resource {part.name}: {part.uri}]"
        case types.ImageContent() | types.AudioContent():
            size = len(part.data.rstrip("=")) * 3 // 4
            return f"[{part.type}, {part.mime_type}, {size} bytes]"


def _part(content: Content) -> Part:
    match content:
        case types.TextContent():
            return TextPart(content.text)
        case types.ImageContent():
            return ImagePart(content.mime_type, base64.b64decode(content.data))
        case types.AudioContent():
            return FilePart(content.mime_type, base64.b64decode(content.data))
        case types.ResourceLink():
            return FilePart(content.mime_type or "application/octet-stream", url=content.uri, name=content.name)
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return TextPart(resource.text)
        case types.EmbeddedResource(resource=types.BlobResourceContents() as resource):
            media_type, content_bytes = (
                resource.mime_type or "application/octet-stream",
                base64.b64decode(resource.blob),
            )
            if media_type.startswith("image/"):
                return ImagePart(media_type, content_bytes)
            return FilePart(media_type, content_bytes, name=resource.uri)
    raise ValueError(f"{type(content).__name__} is no content of a message")
