"""Anthropic's own Python package. Called by api_clients.rs with the server's base URL; it serves kimi-tiny."""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0, timeout=120)
MODEL = "kimi-tiny"
HELLO = [{"role": "user", "content": "Hello! What are you?"}]
ASK = [{"role": "user", "content": "What is the weather in Berlin?"}]
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def text(message):
    return "".join(block.text for block in message.content if block.type == "text")


def whole():
    message = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, system="You are brief.", extra_body={"temperature": 0})
    assert message.type == "message" and message.role == "assistant" and message.stop_reason == "end_turn", message
    assert "kimi-tiny" in text(message), message
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0


def streamed():
    whole = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, extra_body={"temperature": 0})
    with client.messages.stream(model=MODEL, max_tokens=64, messages=HELLO, extra_body={"temperature": 0}) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1 and "".join(pieces) == text(final) == text(whole)
    assert final.stop_reason == "end_turn" and final.usage.output_tokens == whole.usage.output_tokens


def length_and_stop():
    message = client.messages.create(model=MODEL, max_tokens=3, messages=HELLO, extra_body={"temperature": 0})
    assert message.stop_reason == "max_tokens", message
    message = client.messages.create(model=MODEL, max_tokens=64, messages=HELLO, extra_body={"temperature": 0}, stop_sequences=["tiny"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "tiny"), message
    assert "tiny" not in text(message)


def tools():
    first = client.messages.create(model=MODEL, max_tokens=100, messages=ASK, tools=[WEATHER], extra_body={"temperature": 0})
    assert first.stop_reason == "tool_use", first
    call = next(block for block in first.content if block.type == "tool_use")
    assert call.name == "get_weather" and call.input == {"city": "Berlin"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temp": 21, "sky": "sunny"}'}
    turns = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(model=MODEL, max_tokens=100, messages=turns, tools=[WEATHER], extra_body={"temperature": 0})
    assert second.stop_reason == "end_turn" and "21" in text(second), second


def streamed_tools():
    with client.messages.stream(model=MODEL, max_tokens=100, messages=ASK, tools=[WEATHER], extra_body={"temperature": 0}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds, kinds
    assert final.content[-1].input == {"city": "Berlin"} and final.stop_reason == "tool_use"


def forced():
    other = {**WEATHER, "name": "get_news", "description": "Get the news of a city"}
    for choice in [{"type": "tool", "name": "get_news"}, {"type": "any"}]:
        message = client.messages.create(
            model=MODEL, max_tokens=200, messages=[{"role": "user", "content": "Hello"}], tools=[WEATHER, other],
            tool_choice=choice, extra_body={"temperature": 0},
        )
        call = next(block for block in message.content if block.type == "tool_use")
        assert call.name == choice.get("name", call.name) and isinstance(call.input["city"], str), message


def runner():
    # Its newer versions ask for threads first, and go on without where the server has none.
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the current weather for a city

        Args:
            city: the city
        """
        assert city == "Berlin", city
        return '{"temp": 21, "sky": "sunny"}'

    turns = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=100, messages=ASK, tools=[get_weather], extra_body={"temperature": 0}
    )
    assert "21" in text(turns.until_done())


def count():
    count = client.messages.count_tokens(model=MODEL, messages=HELLO, system="You are brief.")
    message = client.messages.create(model=MODEL, max_tokens=1, messages=HELLO, system="You are brief.")
    assert count.input_tokens == message.usage.input_tokens


def errors():
    try:
        client.messages.create(model="nobody", max_tokens=1, messages=HELLO)
        raise AssertionError("there is no such model")
    except anthropic.NotFoundError as error:
        assert error.body["type"] == "error" and error.body["error"]["type"] == "not_found_error", error.body
    try:
        client.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "robot", "content": "x"}])
        raise AssertionError("there is no such role")
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error" and "messages[0].role" in str(error), error.body


TESTS = [whole, streamed, length_and_stop, tools, streamed_tools, forced, runner, count, errors]
for test in TESTS:
    test()
    print(test.__name__, flush=True)
print(f"all {len(TESTS)}")
