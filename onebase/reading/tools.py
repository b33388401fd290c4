"""Tools in data files: definitions, calls and results, as OpenAI's `messages` and as ShareGPT write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onebase.errors import DataError
from onebase.reading.json_text import described
from onebase.records import Message, ToolCall

TOOL_KEYS = ("tools", "functions")
"""Keys of a row that define tools: a list, or the same as JSON text."""


def read_tools(value: Any, place: str, key: str) -> tuple[str, ...]:
    """The definitions in a row's `tools`, each as JSON text in OpenAI's form; none for an empty or blank value.

    A bare `{name, description, parameters}` becomes `{"type": "function", "function": {..}}`, which is what templates
    are written for.

    Raises:
        DataError: it is not a list of definitions with names.
    """
    if isinstance(value, str) and value.strip():
        value = _parsed(value, place, key)
    if value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        value = [value]
    tools = []
    for index, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
            raise DataError(
                f"{place}: '{key}[{index}]' is {described(tool)}; expected a tool {{name, description, parameters}}, "
                "alone or as 'function' of a tool"
            )
        whole = tool if "function" in tool else {"type": "function", "function": tool}
        tools.append(json.dumps(whole, ensure_ascii=False))
    return tuple(tools)


def read_calls(value: Any, place: str, key: str) -> tuple[ToolCall, ...]:
    """A message's `tool_calls` (a list), `function_call` (an object), or the JSON text of a ShareGPT turn.

    Raises:
        DataError: it is not a function's name and its arguments, an object or the JSON text of one.
    """
    if isinstance(value, str):
        value = _parsed(value, place, key)
    listed = value if isinstance(value, list) else [value]
    return tuple(
        _call(each, place, f"{key}[{index}]" if isinstance(value, list) else key) for index, each in enumerate(listed)
    )


def _call(value: Any, place: str, key: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(f"{place}: '{key}' is {described(value)}; expected a call {{name, arguments}}")
    given: Any = function.get("arguments", function.get("parameters", {}))
    arguments = _parsed(given or "{}", place, f"{key}.arguments") if isinstance(given, str) else given
    if arguments is not None and not isinstance(arguments, dict):
        raise DataError(
            f"{place}: '{key}.arguments' is {described(given)}; expected an object, or the JSON text of one"
        )
    call_id = value.get("id")
    return ToolCall(
        function["name"],
        json.dumps(arguments or {}, ensure_ascii=False),
        call_id if isinstance(call_id, str) else "",
    )


def _parsed(text: str, place: str, key: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{place}: '{key}' is {described(text)}, and not JSON{where}; correct it, or make it part of a plain turn"
        ) from None


def for_template(message: Message) -> dict[str, Any]:
    """The message as chat templates read it, with the arguments of calls as objects."""
    return _written(message, json.loads)


def for_file(message: Message) -> dict[str, Any]:
    """The message as OpenAI's `messages` hold it, with the arguments of calls as JSON text."""
    return _written(message, str)


def _written(message: Message, arguments: Any) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.name:
        turn["name"] = message.name
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    return turn


def texts_of(messages: Sequence[Message], tools: Sequence[str]) -> dict[str, int]:
    """Every text of tools, calls and results, and in how many of them it stands.

    Of a definition: names, descriptions, properties and the values of an `enum`; templates may write the types of
    properties in words of their own.
    """
    found: dict[str, int] = {}
    defined = [json.loads(tool) for tool in tools]
    parts: list[list[str]] = [[tool["function"]["name"], *sorted(_defined(tool))] for tool in defined]
    for message in messages:
        parts += [[call.name, *sorted(_strings(json.loads(call.arguments)))] for call in message.tool_calls]
        parts += [[message.content]] * (message.role == "tool")
    for part in parts:
        for text in dict.fromkeys(each.strip() for each in part if each.strip()):
            found[text] = found.get(text, 0) + 1
    return found


def _defined(value: Any) -> set[str]:
    if isinstance(value, list):
        return {text for inner in value for text in _defined(inner)}
    if not isinstance(value, dict):
        return set()
    found = {text for inner in value.values() for text in _defined(inner)}
    found |= {value[key] for key in ("name", "description") if isinstance(value.get(key), str)}
    if isinstance(value.get("properties"), dict):
        found |= set(value["properties"])
    return found | {each for each in value.get("enum") or () if isinstance(each, str)}


def _strings(value: Any) -> set[str]:
    """Keys and texts at any depth."""
    if isinstance(value, Mapping):
        return {*value, *(text for inner in value.values() for text in _strings(inner))}
    if isinstance(value, list):
        return {text for inner in value for text in _strings(inner)}
    return {value} if isinstance(value, str) else set()
