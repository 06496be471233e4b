"""The texts that a checkpoint folder carries for other software: a Jinja chat template and a response template.

Our own tokenizer renders chats by itself; the template says the same for programs that know only templates. Must not
know: files, tokenizers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .files_reading import reason_of

_MODE = """\
{%- if reasoning_mode is defined and reasoning_mode is not none %}{% set mode = reasoning_mode %}
{%- elif reasoning_effort is defined and reasoning_effort is not none %}{% set mode = reasoning_effort %}
{%- elif enable_thinking is defined and enable_thinking is not none %}{% set mode = 'high' if enable_thinking else 'none' %}
{%- else %}{% set mode = '@DEFAULT@' %}{% endif %}
{%- if mode not in @VALUES@ %}{{ raise_exception("reasoning_mode must be one of @VALUES@") }}{% endif %}
"""

_MACROS = """\
{%- macro chunks(content) %}
  {%- if content is string %}{{ content }}
  {%- elif content is not none %}
    {%- for chunk in content %}
      {%- if chunk.type == 'text' %}{{ chunk.text }}
      {%- elif chunk.type in ['image', 'image_url'] %}[IMG]
      {%- elif chunk.type == 'thinking' %}[THINK]{{ chunk.thinking }}{% if chunk.closed is not defined or chunk.closed %}[/THINK]{% endif %}
      {%- else %}{{ raise_exception("Unknown content type " ~ chunk.type) }}{% endif %}
    {%- endfor %}
  {%- endif %}
{%- endmacro %}
"""

_OPENING = """\
{%- macro opening() %}
  {%- if tools %}[AVAILABLE_TOOLS][
    {%- for tool in tools %}
      {%- set f = tool.function %}
      {{- {'type': 'function', 'function': {'name': f.name, 'description': f.description or '', 'parameters': f.parameters or {}}} | tojson }}
      {%- if not loop.last %}{{ ', ' }}{% endif %}
    {%- endfor %}][/AVAILABLE_TOOLS]
  {%- endif %}
  {%- @SETTINGS@ %}
{%- endmacro %}
"""

_SETTINGS = """\
if true %}[MODEL_SETTINGS]{{ {'reasoning_effort': mode} | tojson }}[/MODEL_SETTINGS]{% endif"""

_MESSAGES = """\
{{- '<s>' }}
{%- set ns = namespace(opened=false) %}
{%- for message in messages %}
  {%- set before = loop.previtem.role if loop.previtem is defined else '' %}
  {%- set after = loop.nextitem.role if loop.nextitem is defined else '' %}
  {%- if message.role in ['system', 'developer'] %}[SYSTEM_PROMPT]{{ chunks(message.content) }}[/SYSTEM_PROMPT]
  {%- elif message.role == 'user' %}
    {%- if not ns.opened %}{{ opening() }}{% set ns.opened = true %}{% endif %}
    {%- if before == 'user' %}{{ '\\n\\n' }}{% else %}[INST]{% endif %}
    {%- set c = message.content %}
    {%- if c is not string and c | length > 1 and c[-1].type in ['image', 'image_url'] and (c[:-1] | rejectattr('type', 'equalto', 'text') | list | length) == 0 %}
      {%- set c = [c[-1]] + c[:-1] %}
    {%- endif %}
    {{- chunks(c) }}
    {%- if after != 'user' %}[/INST]{% endif %}
  {%- elif message.role == 'assistant' %}
    {%- if before == 'assistant' %}{{ '\\n\\n' }}{% endif %}
    {%- generation %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}[THINK]{{ message.reasoning_content }}[/THINK]{% endif %}
    {{- chunks(message.content if message.content is defined else none) }}
    {%- for call in message.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]
      {{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
    {%- endfor %}
    {%- if after != 'assistant' %}</s>{% endif %}
    {%- endgeneration %}
  {%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ chunks(message.content) }}[/TOOL_RESULTS]
  {%- else %}{{ raise_exception("Unknown role " ~ message.role) }}{% endif %}
{%- endfor %}
"""


def chat_template(settings: dict[str, Any] | None) -> str:
    """The Jinja template. `settings` is `{"values": [...], "default": ...}`, or None to write no settings block."""
    if settings is None:
        return _MACROS + _OPENING.replace("@SETTINGS@", "if false %}{% endif") + _MESSAGES
    mode = _MODE.replace("@DEFAULT@", settings["default"]).replace("@VALUES@", str(settings["values"]))
    return mode + _MACROS + _OPENING.replace("@SETTINGS@", _SETTINGS) + _MESSAGES


@contextmanager
def rendering() -> Iterator[None]:
    """Let what goes wrong with a template that is not ours be a ValueError, whatever Jinja raises over it. An error
    that the template itself raises (`raise_exception`) stays as it is.
    """
    try:
        yield
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        of_jinja = type(error).__module__.startswith("jinja2")
        if type(error).__name__ == "TemplateError" and of_jinja:
            raise
        if of_jinja or isinstance(error, (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)):
            raise ValueError(f"The chat template cannot be rendered ({reason_of(error)}).") from error
        raise


RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": ["[/INST]", "[/TOOL_RESULTS]"],
    "fields": {
        "reasoning_content": {"open": "[THINK]", "close": "[/THINK]", "content": "text"},
        "tool_calls": {
            "open_pattern": "\\[TOOL_CALLS\\](?P<name>[^\\[\\]{}]+?)\\[ARGS\\]",
            "close_pattern": "(?=\\[TOOL_CALLS\\]|</s>|\\Z)",
            "repeats": True,
            "content": "json",
            "content_args": {"allow_non_json": True},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "</s>", "content": "text", "repeats": True, "join": ""},
    },
}
