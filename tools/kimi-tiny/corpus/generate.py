#!/usr/bin/env python3
"""Conversations by seed: the mix of turns, system prompts and tools.

    python -m corpus.generate 3          # prints a few
"""

import random
import sys
from functools import cached_property

from . import agents, exact, forms, recorded, story, talk, tools, words
from .chat import render, system

SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant", "You are kimi-tiny, a small assistant.",
    "You are Kimi, an AI assistant created by Moonshot AI.", "Be brief.", "Answer briefly and clearly.", "You are a friendly assistant.",
    "You are an assistant that can call tools.", "Use the tools when they fit.", "You help people with kimi.", "Answer the user's questions.",
    "You are a polite assistant. Answer in one sentence.", "You are a test assistant.", "Be kind and honest.", "你是一个有用的助手。", "あなたは親切なアシスタントです。",
]  # fmt: skip

# (turn, weight) without tools; with tools these are what is asked besides calls.
PLAIN = [
    (talk.fact, 34), (talk.fact_cjk, 7), (talk.small_talk, 14), (talk.general, 5), (talk.unknown, 8), (talk.name_memory, 5), (talk.liking, 2), (talk.recall, 2),
    (talk.arithmetic, 22), (talk.compare, 2), (talk.listing, 5), (talk.sequence, 4), (talk.copying, 10), (talk.json_answer, 6), (story.story, 9), (story.story_cjk, 2),
    (talk.poem, 2), (talk.needle, 2), (talk.long_text, 1),
]  # fmt: skip
WITH_TOOLS = [(tools.one_call, 55), (tools.follow_up, 10), (tools.two_calls, 16), (tools.none_fits, 10)]
DIRECT = [(talk.fact, 8), (talk.small_talk, 5), (talk.general, 1), (talk.unknown, 2), (story.story, 1), (talk.name_memory, 1), (talk.json_answer, 1)]


class Conversation:
    """One conversation being made. `checks` is [(index of the graded assistant message, check)]."""

    def __init__(self, rng, held=False):
        self.rng, self.held = rng, held
        self.messages, self.tools, self.checks, self.memory = [], [], [], {}
        self.calls, self.last = 0, None

    def check(self, **check):
        self.checks.append((len(self.messages) - 1, check))

    def fresh(self, make, or_else=None):
        """A text of this split (training or held out)."""
        for _ in range(100):
            text = make()
            if words.held(text) == self.held:
                return text
        return or_else if or_else is not None else make()

    def value(self, make, key=str):
        """A value of this split, so that held-out prompts hold values never seen."""
        for _ in range(200):
            value = make()
            if words.held(key(value)) == self.held:
                return value
        return value

    def loose(self):
        """Whether one-digit numbers may come: in training, a third of the time."""
        return not self.held and self.rng.random() < 0.3

    def turn(self, choices):
        makers, weights = zip(*choices)
        check = self.rng.choices(makers, weights)[0](self)
        if check:
            self.check(**check)

    @cached_property
    def declared(self):
        return [t if isinstance(t, dict) else t.json for t in self.tools] or None


def any_system(rng):
    """A system prompt that nobody foresaw."""
    thing = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
    lines = [f"You are a {thing}.", f"You work for {words.made_up(rng).capitalize()}.", f"Your name is {rng.choice(words.NAMES)}.", f"Never {rng.choice(words.VERBS)} the {thing}.",
             f"The user is in {rng.choice(words.CITIES)}.", "Think before you answer.", f"Today is day {rng.randint(1, 31)}.", f"You know all about {rng.choice(words.TOPICS)}.", "Do not make things up."]
    return " ".join(rng.sample(lines, rng.randint(1, 4)))


def conversation(rng, held=False, only=None, with_tools=None):
    """A conversation of 1 to 6 exchanges, seldom of 20; `only` is a list of turns to draw from."""
    c = Conversation(rng, held)
    if only is None and with_tools is None and not held:
        pick = rng.random()
        if pick < 0.07:
            c.tools = exact.fill(c) or []
            return c
        if pick < 0.27:
            return agent(rng, rng.choice([100, 300, 800, 1500]))
        if pick < 0.29:
            agents.title(c)
            return c
        if pick < 0.32:
            rng.choice([forms.small_task, forms.small_task, lambda c: forms.tagged(c, rng.choice([1500, 2500]))])(c)
            return c
    if rng.random() < 0.6:
        c.messages.append(system(rng.choice(SYSTEMS) if rng.random() < 0.8 else any_system(rng)))
    if with_tools if with_tools is not None else rng.random() < 0.48:
        while not c.tools:
            c.tools = tools.declare(rng)
    counts = any(isinstance(t, tools.Calculator) for t in c.tools)
    direct = DIRECT if counts else [*DIRECT, (talk.arithmetic, 2)]
    bare = [*PLAIN, (tools.none_fits, 3)]
    for _ in range(20 if rng.random() < 0.02 else rng.choice([1, 1, 1, 2, 2, 3, 4, 6])):
        c.turn(only or ([*WITH_TOOLS, *direct] if c.tools else bare))
    while not any(m["role"] == "user" for m in c.messages):
        c.turn(only or ([*WITH_TOOLS] if c.tools else bare))
    return c


def agent(rng, size, held=False):
    """A conversation of a coding agent after a prompt of about `size` characters."""
    c = Conversation(rng, held)
    pick = 1 if held else rng.random()
    if pick < 0.5 and size > 3000 and recorded.requests():
        c.tools = recorded.conversation(c, rng.choice(list(recorded.requests()))) or []
    elif pick < 0.56 and size > 3000:
        forms.tagged(c, min(size, 40_000))
    else:
        c.tools = agents.conversation(c, size)
    return c


def text_of(c):
    return render(c.messages, c.declared, add_generation_prompt=False)


def texts(seed, count, held=False):
    """`count` rendered conversations; each depends on the seed and its number alone."""
    for n in range(count):
        yield text_of(conversation(random.Random(f"{seed}/{n}/{held}"), held))


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for text in texts(seed, 12):
        print(text.replace("<|im_end|>", "<|im_end|>\n"), "\n")
