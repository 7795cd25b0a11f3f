"""Conversations as OpenAI messages, and their text in K2's chat format."""

import json
from functools import cache
from pathlib import Path

TEMPLATE = Path(__file__).resolve().parents[1] / "chat_template.jinja"


@cache
def _template():
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def tojson(value, separators=None):
        return json.dumps(value, ensure_ascii=False, separators=separators)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    return env.from_string(TEMPLATE.read_text())


def render(messages, tools=None, add_generation_prompt=True):
    """The template's text, as transformers and kimi render it."""
    return _template().render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def calls(first, *named):
    """An assistant turn of tool calls, [(name, arguments dict)]; ids count on from `first`."""
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": f"functions.{name}:{first + n}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
            }
            for n, (name, arguments) in enumerate(named)
        ],
    }


def result(call, content):
    """A tool's answer to one call of `calls`."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return {"role": "tool", "tool_call_id": call["id"], "content": text}
