"""Frameworks over OpenAI's API: langchain, pydantic-ai, litellm. Called by api_clients.rs with the server's base URL; it
serves kimi-tiny."""

import sys
from typing import Literal

from pydantic import BaseModel

BASE = f"{sys.argv[1]}/v1"
MODEL = "kimi-tiny"
ASK = "What is the weather in Berlin?"


class City(BaseModel):
    """A city."""

    name: str
    size: Literal["small", "large"]


def get_weather(city: str) -> str:
    """Get the current weather for a city"""
    assert city == "Berlin", city
    return '{"temp": 21, "sky": "sunny"}'


def langchain_four_ways():
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=BASE, api_key="none", model=MODEL, temperature=0, max_tokens=1000, max_retries=0)
    for how in [{"method": "json_schema"}, {"method": "json_schema", "strict": True}, {"method": "function_calling"},
                {"method": "json_mode"}]:
        if how["method"] == "json_mode":
            # The schema is in the prompt there, which a toy does not follow: only that it is JSON.
            answer = model.bind(response_format={"type": "json_object"}).invoke("Name a city in JSON.")
            assert answer.content.lstrip().startswith("{"), answer
            continue
        answer = model.with_structured_output(City, **how).invoke("Name a city.")
        assert isinstance(answer, City), (how, answer)


def langchain_agent():
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=BASE, api_key="none", model=MODEL, temperature=0, max_retries=0)
    agent = create_agent(model, tools=[get_weather])
    messages = agent.invoke({"messages": [{"role": "user", "content": ASK}]})["messages"]
    assert "21" in messages[-1].content, messages


def pydantic_ai():
    from pydantic_ai import Agent, NativeOutput, ToolOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE, api_key="none"))
    settings = {"temperature": 0, "max_tokens": 1000}
    agent = Agent(model, tools=[get_weather], model_settings=settings)
    assert "21" in agent.run_sync(ASK).output
    for output in [ToolOutput(City), NativeOutput(City)]:
        answer = Agent(model, output_type=output, model_settings=settings).run_sync("Name a city.").output
        assert isinstance(answer, City), answer


def litellm_completion():
    import litellm

    answer = litellm.completion(
        model=f"openai/{MODEL}", api_base=BASE, api_key="none", messages=[{"role": "user", "content": "Name a city."}],
        response_format=City, temperature=0, max_tokens=1000,
    )
    City.model_validate_json(answer.choices[0].message.content)
    try:
        litellm.completion(
            model=f"openai/{MODEL}", api_base=BASE, api_key="none", num_retries=0,
            messages=[{"role": "user", "content": "word " * 200_000}],
        )
        raise AssertionError("it is too long")
    except litellm.ContextWindowExceededError:
        pass


TESTS = [langchain_four_ways, langchain_agent, pydantic_ai, litellm_completion]
for test in TESTS:
    test()
    print(test.__name__, flush=True)
print(f"all {len(TESTS)}")
