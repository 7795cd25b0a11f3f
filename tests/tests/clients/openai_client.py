"""Talks to a server through OpenAI's own Python package. Called by api_clients.rs with the server's base URL.

The server has three models: kimi-tiny, `caller` (always answers with two tool calls) and `broken` (fails on the way).
"""

import asyncio
import json
import sys
import time
import urllib.request

import openai

BASE = sys.argv[1]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0, timeout=120)
STORY = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Tell me a story."}]
FIXED = {"model": "kimi-tiny", "messages": STORY, "temperature": 0, "max_completion_tokens": 24, "seed": 1}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def models():
    assert [m.id for m in client.models.list()] == ["kimi-tiny", "caller", "broken"]
    assert client.models.retrieve("kimi-tiny").object == "model"


def whole_and_streamed():
    whole = client.chat.completions.create(**FIXED, extra_body={"ignore_eos": True})
    assert whole.object == "chat.completion" and whole.model == "kimi-tiny" and whole.id.startswith("chatcmpl-")
    choice = whole.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant"
    usage = whole.usage
    assert usage.completion_tokens == 24 and usage.total_tokens == usage.prompt_tokens + 24

    text, finish, last = "", None, None
    stream = client.chat.completions.create(
        **FIXED, stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True}
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for c in chunk.choices:
            text += c.delta.content or ""
            finish = c.finish_reason or finish
        last = chunk
    assert text == choice.message.content, (text, choice.message.content)
    assert finish == "length" and last.usage == usage and last.choices == []


def ends_by_itself_or_by_length():
    answer = client.chat.completions.create(model="kimi-tiny", messages=STORY, max_tokens=64, stop=["\n\n"])
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert "\n\n" not in answer.choices[0].message.content


def logprobs():
    answer = client.chat.completions.create(**{**FIXED, "max_completion_tokens": 3}, logprobs=True, top_logprobs=4)
    for token in answer.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 4 and token.top_logprobs[0].logprob == token.logprob


def tool_calls():
    ask = {"model": "caller", "messages": STORY, "tools": [WEATHER], "tool_choice": "auto"}
    message = client.chat.completions.create(**ask).choices[0].message
    assert [json.loads(c.function.arguments)["city"] for c in message.tool_calls] == ["Oslo", "京都"]
    assert message.content is None and message.tool_calls[1].id == "functions.weather:1"

    # The package's own accumulator takes the stream.
    with client.chat.completions.stream(**ask) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert [c.function.arguments for c in final.choices[0].message.tool_calls] == [
        c.function.arguments for c in message.tool_calls
    ]

    # The calls and their results go back to the real model as the package writes them.
    results = [{"role": "tool", "tool_call_id": c.id, "content": "sunny"} for c in message.tool_calls]
    history = [*STORY, message.model_dump(exclude_none=True), *results]
    answer = client.chat.completions.create(model="kimi-tiny", messages=history, tools=[WEATHER], max_tokens=8)
    assert answer.usage.completion_tokens <= 8


def expect(kind, status, code, param, **changes):
    try:
        client.chat.completions.create(**{**FIXED, **changes})
    except kind as error:
        assert error.status_code == status and (error.code, error.param) == (code, param), error
    else:
        raise AssertionError(f"{changes} was accepted")


def errors():
    expect(openai.NotFoundError, 404, "model_not_found", "model", model="gpt-4o")
    expect(openai.BadRequestError, 400, "invalid_value", "temperature", temperature=9)
    expect(openai.BadRequestError, 400, "unsupported_parameter", "functions", functions=[{"name": "f"}])
    long = [{"role": "user", "content": "lighthouse " * 40000}]
    expect(openai.BadRequestError, 400, "context_length_exceeded", "messages", messages=long)
    expect(openai.InternalServerError, 503, "engine_unavailable", None, model="broken")
    text = ""
    try:
        for chunk in client.chat.completions.create(**{**FIXED, "model": "broken"}, stream=True):
            text += chunk.choices[0].delta.content or ""
    except openai.APIError as error:
        assert error.code == "engine_unavailable", error
    else:
        raise AssertionError("the failure on the way was not noticed")
    assert text == "Once"


def two_at_once():
    async def stream(client, tokens):
        ask = {**FIXED, "max_completion_tokens": tokens}
        begun = []
        async for _ in await client.chat.completions.create(**ask, stream=True, extra_body={"ignore_eos": True}):
            begun.append(time.monotonic())
        return begun[1], begun[-1]

    async def both():
        async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", timeout=120) as client:
            return await asyncio.gather(stream(client, 100), stream(client, 100))

    (a_first, a_last), (b_first, b_last) = asyncio.run(both())
    assert a_first < b_last and b_first < a_last, "one waited for the other to end"


def leaving_frees():
    ask = {**FIXED, "max_completion_tokens": 3000}
    stream = client.chat.completions.create(**ask, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    for _ in range(1000):
        with urllib.request.urlopen(f"{BASE}/health") as health:
            model = json.load(health)["models"][0]
        if model["sequences"] == {"running": 0, "waiting": 0} and model["pages"]["used"] == 0:
            return
        time.sleep(0.02)
    raise AssertionError(f"still busy: {model}")


for test in [
    models,
    whole_and_streamed,
    ends_by_itself_or_by_length,
    logprobs,
    tool_calls,
    errors,
    two_at_once,
    leaving_frees,
]:
    test()
    print("ok", test.__name__)
print("all", openai.__version__)
