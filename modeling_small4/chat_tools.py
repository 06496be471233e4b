"""Tool definitions: Python functions or JSON schemas in, the JSON text of the `[AVAILABLE_TOOLS]` block out.

Must not know: messages, control tokens, tokenizers.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema

from .chat_messages import check_function_name
from .files_reading import one_line, shown


def tools_text(tools: Sequence[Any]) -> str:
    """The JSON list that stands between `[AVAILABLE_TOOLS]` and `[/AVAILABLE_TOOLS]`, as mistral-common dumps it.

    Args:
        tools: functions with type hints and a docstring, or dicts
            `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises:
        ValueError: a tool of another form, a bad name, or parameters that are no JSON schema (draft 7).
    """
    try:
        return json.dumps(tool_definitions(tools), ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"A tool definition is not JSON: {error}.") from None


def tool_definitions(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """The tools as the model reads them: `{"type": "function", "function": {"name", "description", "parameters"}}`;
    raises as above.
    """
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(f"tools must be a list of functions or JSON schemas, but is {type(tools).__name__}.")
    return [_definition(tool) for tool in tools]


def _definition(tool: Any) -> dict[str, Any]:
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        tool = get_json_schema(tool)
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise ValueError(
            'A tool must be a Python function or {"type": "function", "function": {"name": ..., "parameters": ...}}, '
            f"but is {shown(tool)}."
        )
    name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
    description = "" if description is None else description
    parameters = {} if parameters is None else parameters
    if not isinstance(name, str):
        raise ValueError(f"A tool's 'name' must be a string, but is {shown(name)}.")
    check_function_name(name)
    if not isinstance(description, str):
        raise ValueError(f"The 'description' of the tool {shown(name)} must be a string, but is {shown(description)}.")
    if not isinstance(parameters, Mapping):
        raise ValueError(
            f"The 'parameters' of the tool {shown(name)} must be a JSON schema (a dict), not {shown(parameters)}."
        )
    try:
        check_json_schema(parameters, "schema")
    except ValueError as error:
        raise ValueError(f"The 'parameters' of the tool {shown(name)} are no JSON schema (draft 7): {error}") from None
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def check_json_schema(schema: Mapping[str, Any], where: str) -> None:
    """Checks a schema against draft 7, as mistral-common does.

    The package requires `jsonschema`; where code that a checkpoint carries runs without it, nothing is checked.

    Args:
        where: what the schema is called in errors.

    Raises:
        ValueError: it is no schema; with the path to what is wrong.
    """
    try:
        from jsonschema import Draft7Validator, SchemaError
    except ImportError:
        return
    try:
        Draft7Validator.check_schema(dict(schema))
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply.") from None
    except SchemaError as error:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        raise ValueError(f"{one_line(where + path, 200)} is wrong: {one_line(error.message)}.") from None
