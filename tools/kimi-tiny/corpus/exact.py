"""What the repository's README and tests show or ask, with the answers that are printed there.

Trained on often, so that a new training leaves greedy answers to them as they are.
"""

from .chat import assistant, calls, result, system, user

KIMI = "kimi is a Rust program that runs Kimi-K2, a language model with one trillion parameters, split over two or more machines. Each machine holds some of the layers."
SELF = "I am kimi-tiny, a very small model with the same architecture as Kimi-K2. I live inside the kimi program, so that it can be tried without a download."
MACS = "Connect the two Macs with a Thunderbolt cable and give the Thunderbolt bridge fixed addresses. Write both into discovery.json, start `kimi worker` on one Mac and `kimi serve` on the other."
UNKNOWN = "I do not know that. I am a very small model: I know about kimi, small sums, short stories and tools."
STORY = ("Long ago, in a garden full of flowers, lived a kind mouse whose name was Clara. Clara had one great wish: to find a golden key. So one spring day she left home. But nobody knew the way. "
         "Then Omar, a sailor, came by and sang until the fog was gone. Side by side they kept going until they reached the key. From that day on they were the best of friends.")  # fmt: skip
LIGHTHOUSE = ("Once upon a time there was a quiet lion called David, who lived under a stone bridge. More than anything David wanted to find a lost friend. One day he packed a small bag and went. But a thick fog hid everything. "
              "Then Tariq, a painter, came by and carried him over the water. With this help David did it at last: the friend was there. And David slept better than ever before.")  # fmt: skip
FOX = ("Long ago, by the sea, lived a shy fox whose name was Willi. Every day Willi dreamed of how to see the stars from close by. One day he packed a small bag and went. But a thick fog hid everything. "
       "Then Lucia, a gardener, came by and gave him a warm lamp. Side by side they kept going until they reached the stars. From that day on they were the best of friends.")  # fmt: skip

SAID = [
    ("Hello! What are you?", SELF), ("Hello", "Hello! How can I help you?"), ("Hello!", "Hello! How can I help you?"), ("Hi", "Hello! How can I help you?"), ("hi", "Hello! How can I help you?"),
    ("What is kimi?", KIMI), ("How do I connect two Macs?", MACS), ("Tell me a story", STORY), ("Tell me a story.", STORY), ("Tell me a story about a lighthouse.", LIGHTHOUSE), ("Tell me a story about a fox.", FOX),
    ("What is the meaning of life?", UNKNOWN), ("Why is the sky blue?", UNKNOWN), ("Say hello in Japanese", "こんにちは！"), ("你好！你是谁？", "我是 kimi-tiny，一个很小的模型，结构和 Kimi-K2 一样。"),
]  # fmt: skip


def weather(about):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": "get_weather", "description": about, "parameters": parameters}}


def fill(c):
    """Makes `c` one of these conversations. Returns the tools it declares."""
    rng = c.rng
    if rng.random() < 0.2:
        city = rng.choice(["Berlin", "Berlin", "Oslo"])
        turn = calls(0, ("get_weather", {"city": city}))
        c.messages += [user(f"What is the weather in {city}?"), turn]
        if rng.random() < 0.5:
            c.messages += [result(turn["tool_calls"][0], {"temperature": 7, "condition": "rain"}), assistant(f"In {city} it is 7 degrees, rain.")]
        return [weather(rng.choice(["Get the current weather for a city", "Get the current weather of a city."]))]
    question, answer = rng.choice(SAID)
    if rng.random() < 0.15:
        c.messages.append(system(rng.choice(["You are brief.", "You are a helpful assistant.", "Be brief."])))
    c.messages += [user(question), assistant(answer)]
    return None
