"""Asks a server in many forms and checks each answer against OpenAI's and Anthropic's own OpenAPI documents.

Called by api_clients.rs with the server's base URL. The server has three models: kimi-tiny, `caller` (thinks, then calls two tools)
and `broken` (fails on the way).
"""

import collections
import http.client
import json
import sys
import urllib.parse

from openapi import Checker

BASE = urllib.parse.urlsplit(sys.argv[1])
STORY = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Tell me a story."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather in a city", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
SCHEMA = {
    "type": "object",
    "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["stars"],
    "additionalProperties": False,
}
NAMED = {"name": "review", "strict": True, "schema": SCHEMA}
THINKER = {"model": "caller"}
BROKEN = {"model": "broken"}

CHATS = [
    {},
    {"max_completion_tokens": 1},
    {"stop": ["e"], "user": "someone", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    {"n": 3, "temperature": 1, "seed": 5},
    {"logprobs": True, "top_logprobs": 3},
    {"logprobs": True, "n": 2},
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "required", "max_completion_tokens": 200, "logprobs": True},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False},
    {"response_format": {"type": "json_object"}, "max_completion_tokens": 200},
    {"response_format": {"type": "json_schema", "json_schema": NAMED}, "max_completion_tokens": 200},
    {"messages": [*STORY, {"role": "assistant", "content": "Once", "partial": True}]},
    {**THINKER, "tools": [TOOL]},
    {**THINKER, "tools": [TOOL], "parallel_tool_calls": False},
    BROKEN,
    {"model": "gpt-5"},
    {"temperature": 9},
    {"messages": []},
    {"messages": [{"role": "user", "content": "far " * 40000}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(?!x)y"}}}},
    {"functions": [FUNCTION]},
]
COMPLETIONS = [
    {},
    {"prompt": ["Once", "Twice"], "n": 2, "temperature": 1},
    {"prompt": [[5, 6], [7]], "echo": True},
    {"logprobs": 2},
    {"logprobs": 0, "stop": "e"},
    {"max_tokens": 0},
    {"suffix": "the end"},
    {"prompt": []},
    {**BROKEN},
]
RESPONSES = [
    {},
    {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.5, "user": "someone"},
    {"max_output_tokens": 16, "store": False, "prompt_cache_key": "k", "safety_identifier": "s", "truncation": "disabled"},
    {"top_logprobs": 2, "include": ["message.output_text.logprobs"]},
    {"tools": [{"type": "function", **FUNCTION}]},
    {"tools": [{"type": "function", **FUNCTION, "strict": True}], "tool_choice": "required", "max_output_tokens": 200},
    {"tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "weather"}},
    {"text": {"format": {"type": "json_schema", **NAMED}}, "max_output_tokens": 200},
    {"text": {"format": {"type": "json_object"}, "verbosity": "low"}, "max_output_tokens": 200},
    {"reasoning": {"effort": "low", "summary": "auto"}},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}, {"role": "assistant", "content": "Hm"}]},
    {**THINKER, "tools": [{"type": "function", **FUNCTION}]},
    {**THINKER, "tools": [{"type": "function", **FUNCTION}], "reasoning": {"summary": "detailed"}},
    BROKEN,
    {"background": True},
    {"previous_response_id": "resp_0"},
    {"input": []},
]
MESSAGES = [
    {},
    {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}], "metadata": {"user_id": "u"}},
    {"max_tokens": 1, "temperature": 1, "top_k": 5, "top_p": 0.9},
    {"stop_sequences": ["e"]},
    {"tools": [{"name": "weather", "input_schema": PARAMETERS}]},
    {"tools": [{"name": "weather", "input_schema": PARAMETERS}], "tool_choice": {"type": "any"}, "max_tokens": 200},
    {"tools": [{"name": "weather", "input_schema": PARAMETERS}], "tool_choice": {"type": "tool", "name": "weather"}},
    {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "max_tokens": 200},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 32},
    {**THINKER, "tools": [{"name": "weather", "input_schema": PARAMETERS}]},
    BROKEN,
    {"model": "claude"},
    {"max_tokens": 0},
    {"messages": []},
    {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]},
]
DOORS = [
    ("/v1/chat/completions", {"messages": STORY, "max_completion_tokens": 24}, CHATS),
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 8}, COMPLETIONS),
    ("/v1/responses", {"input": "Tell me a story.", "max_output_tokens": 24}, RESPONSES),
    ("/v1/messages", {"messages": STORY[1:], "max_tokens": 24}, MESSAGES),
]

checker = Checker()
# What is wrong, and where it was found.
wrong = collections.defaultdict(list)


def ask(method, path, body=None):
    """Sends a request and checks what comes. Gives the JSON of an answer that is not a stream."""
    connection = http.client.HTTPConnection(BASE.hostname, BASE.port, timeout=120)
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    content_type, text = response.getheader("Content-Type", ""), response.read().decode()
    connection.close()
    for error in checker.answer(response.status, content_type, text):
        wrong[error].append(f"{method} {path} {json.dumps(body)[:300]}")
    assert response.status < 500 or (body or {}).get("model") == "broken", (response.status, text)
    return json.loads(text) if content_type == "application/json" else None


for path, usual, forms in DOORS:
    for form in forms:
        body = {"model": "kimi-tiny", "temperature": 0, **usual, **form}
        ask("POST", path, body)
        ask("POST", path, {**body, "stream": True})
        if path in ("/v1/chat/completions", "/v1/completions"):
            ask("POST", path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    print("ok", path)

ask("GET", "/v1/models")
ask("GET", "/v1/models/kimi-tiny")
ask("GET", "/v1/models/none")
ask("GET", "/v1/nothing")
ask("PUT", "/v1/chat/completions")
usual = {"model": "kimi-tiny", "input": "Hello", "max_output_tokens": 8}
first = ask("POST", "/v1/responses", usual)["id"]
second = ask("POST", "/v1/responses", {**usual, "previous_response_id": first})["id"]
for path in (f"/v1/responses/{second}", f"/v1/responses/{second}/input_items", f"/v1/responses/{second}x"):
    ask("GET", path)
ask("POST", "/v1/responses/input_tokens", {"model": "kimi-tiny", "input": "Hello"})
ask("POST", "/v1/messages/count_tokens", {"model": "kimi-tiny", "messages": STORY[1:]})
ask("POST", "/v1/messages/count_tokens", {"model": "kimi-tiny"})
for error, places in wrong.items():
    print(f"{error}\n    {len(places)} times, at first in {places[0]}")
if wrong:
    sys.exit("some answers are not as OpenAI's and Anthropic's documents say")
print("all", checker.report())
