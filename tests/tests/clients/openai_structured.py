"""Structured output and the Responses API through OpenAI's own Python package. Called by api_clients.rs with the server's
base URL; it serves kimi-tiny."""

import sys
from typing import Literal

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0, timeout=120)
MODEL = "kimi-tiny"


class City(BaseModel):
    name: str
    size: Literal["small", "large"]
    people: int


class Answer(BaseModel):
    cities: list[City]
    note: str | None


class GetWeather(BaseModel):
    """Get the current weather for a city."""

    city: str


WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK = [{"role": "user", "content": "What is the weather in Berlin?"}]


def parse():
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Name two cities."}], response_format=Answer, temperature=0,
        max_tokens=1000,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop", choice
    assert isinstance(choice.message.parsed, Answer), choice


def parse_a_tool():
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")], temperature=0
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.parsed_arguments == GetWeather(city="Berlin"), call


def stream_with_a_schema():
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Name a city."}], response_format=City, temperature=0,
        max_tokens=1000,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds, kinds
    assert isinstance(final.choices[0].message.parsed, City)


def json_object():
    import json

    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Answer in JSON."}], response_format={"type": "json_object"},
        temperature=0, max_tokens=1000,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def several_choices():
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], n=3, temperature=1, seed=1, max_tokens=12
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens <= 36


def completions():
    answer = client.completions.create(model=MODEL, prompt=["Once upon", "The"], max_tokens=5, temperature=0, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.object == "text_completion"
    assert len(answer.choices[0].logprobs.tokens) == 5
    streamed = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=5, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == answer.choices[0].text


def responses():
    first = client.responses.create(model=MODEL, instructions="You are brief.", input="Hello! What are you?", temperature=0)
    assert first.status == "completed" and "kimi-tiny" in first.output_text, first
    assert first.usage.input_tokens > 0 and first.usage.output_tokens > 0
    second = client.responses.create(
        model=MODEL, input="What is 2 + 3?", previous_response_id=first.id, temperature=0
    )
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.input_tokens
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
        raise AssertionError("it was deleted")
    except openai.NotFoundError:
        pass


def responses_stream():
    text, kinds = "", []
    with client.responses.stream(model=MODEL, input="Hello! What are you?", temperature=0) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    assert final.output_text == text and text


def responses_tools():
    first = client.responses.create(model=MODEL, input=ASK, tools=[WEATHER], temperature=0)
    call = next(item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather" and "Berlin" in call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temp": 21, "sky": "sunny"}'}
    second = client.responses.create(
        model=MODEL, input=[result], previous_response_id=first.id, tools=[WEATHER], temperature=0
    )
    assert "21" in second.output_text, second
    # The same without anything stored.
    items = [*ASK, *(item.model_dump(exclude_none=True) for item in first.output), result]
    stateless = client.responses.create(model=MODEL, input=items, tools=[WEATHER], temperature=0, store=False)
    assert stateless.output_text == second.output_text


def responses_parse():
    answer = client.responses.parse(
        model=MODEL, input="Name a city.", text_format=City, temperature=0, max_output_tokens=1000
    )
    assert isinstance(answer.output_parsed, City), answer


def refused():
    for call in [
        lambda: client.embeddings.create(model=MODEL, input="a"),
        lambda: client.images.generate(model=MODEL, prompt="a"),
        lambda: client.chat.completions.create(model=MODEL, messages=ASK, functions=[]),
    ]:
        try:
            call()
            raise AssertionError("it was not refused")
        except openai.APIStatusError as error:
            assert 400 <= error.status_code < 500 and error.request_id, error


TESTS = [parse, parse_a_tool, stream_with_a_schema, json_object, several_choices, completions, responses,
         responses_stream, responses_tools, responses_parse, refused]
for test in TESTS:
    test()
    print(test.__name__, flush=True)
print(f"all {len(TESTS)}")
