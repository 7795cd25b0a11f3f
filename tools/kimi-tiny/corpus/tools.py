"""Turns with declared tools: one call, two calls, a follow-up, answers from results, no call.

A kind of tool (weather, calculator, ...) is a class; an instance is one declaration of it, with its
own function name, argument names, descriptions and key order, so that the model has to read the
declaration. `ask` gives a question and the arguments that answer it, `run` a result and its telling.
"""

import re

from . import words
from .chat import assistant, calls, result, user
from .talk import TOO_HARD, phrase


class Tool:
    names: list
    about: list
    missing: str  # what is said when no tool of this kind is declared

    def __init__(self, rng):
        self.name = rng.choice(self.names)
        self.props = {}
        self.required = []
        self.build(rng)
        self.json = self._declare(rng)

    def param(self, rng, names, kind="string", about="", required=True, **more):
        name = rng.choice(names)
        self.props[name] = {"type": kind, **({"description": about} if about and rng.random() < 0.7 else {}), **more}
        if required:
            self.required.append(name)
        return name

    def _declare(self, rng):
        schema = {"type": "object", "properties": self.props}
        if self.required or rng.random() < 0.5:
            schema["required"] = self.required
        if rng.random() < 0.15:
            schema["additionalProperties"] = False
        function = {"name": self.name, "description": rng.choice(self.about), "parameters": schema}
        if rng.random() < 0.08:
            del function["description"]
        if rng.random() < 0.08:
            function["strict"] = True
        tool = {"type": "function", "function": function}
        order = rng.random()
        if order < 0.35:
            return ordered(tool, sorted)
        if order < 0.5:
            return ordered(tool, lambda keys: rng.sample(list(keys), len(keys)))
        return tool

    def where(self):
        """The first argument's name."""
        return next(iter(self.props))


def ordered(value, order):
    if isinstance(value, dict):
        return {k: ordered(value[k], order) for k in order(value)}
    return value


def city(rng):
    """A place: known, known with its state or country, or made up."""
    pick = rng.random()
    if pick < 0.5:
        return rng.choice(words.CITIES)
    if pick < 0.62:
        return rng.choice(words.CITIES) + ", " + rng.choice(["CA", "NY", "TX", "UK", "France", "Japan", "Italy", "Germany", "USA", "China", words.made_up(rng).capitalize()])
    return words.made_up(rng).capitalize() + (" " + words.made_up(rng).capitalize() if pick > 0.95 else "")


def cities(c, count):
    """Several places; without commas, so that it is clear where one ends."""
    return c.value(lambda: [city(c.rng).split(",")[0] for _ in range(count)], key=" and ".join)


class Weather(Tool):
    names = ["get_weather", "get_weather", "weather", "get_current_weather", "current_weather", "weather_lookup", "getWeather", "fetch_weather", "get_forecast"]
    about = ["Get the current weather of a city.", "Get the weather", "Current weather for a location", "Returns temperature and condition of a place.", "Look up the weather in a city", "Get the current weather in a given location"]
    missing = "I have no tool for the weather, so I cannot look it up."

    def build(self, rng):
        self.city = self.param(rng, ["city", "city", "location", "location", "place", "city_name"], about=rng.choice(["Name of the city", "City name", "The city, e.g. Paris", "The city and state, e.g. San Francisco, CA"]))
        self.unit = rng.random() < 0.3 and self.param(rng, ["unit", "units"], about="Unit of the temperature", required=False, enum=["celsius", "fahrenheit"])

    def ask(self, c):
        rng = c.rng
        if rng.random() < 0.08:
            where = rng.choice(words.CITIES_ZH)
            return rng.choice(["{}今天天气怎么样？", "{}的天气怎么样？", "今天{}下雨吗？"]).format(where), {self.city: where}
        if rng.random() < 0.08:
            where = rng.choice(words.CITIES_JA)
            return rng.choice(["{}の天気は？", "今日の{}の天気を教えて。", "{}は雨ですか？"]).format(where), {self.city: where}
        where = c.value(lambda: city(rng))
        text = rng.choice(
            ["What is the weather in {}?", "What is the weather in {}?", "How is the weather in {}?", "What's the weather like in {}?", "What's the weather in {} today?", "Is it raining in {}?",
             "How warm is it in {}?", "How cold is it in {} now?", "Do I need an umbrella in {}?", "Weather in {}?", "Tell me the weather in {}.", "I travel to {}. How is the weather there?",
             "Check the weather for {}.", "Give me the weather of {}.", "Is it sunny in {}?", "What is the temperature in {}?", "Please get the weather in {}", "What will I need to wear in {} today?"]
        )  # fmt: skip
        arguments = {self.city: where}
        if self.unit and rng.random() < 0.5:
            arguments[self.unit] = rng.choice(["celsius", "fahrenheit"])
            return text.format(where).rstrip("?.") + f" in {arguments[self.unit]}?", arguments
        return text.format(where), arguments

    def again(self, c):
        where = c.value(lambda: city(c.rng))
        return c.rng.choice(["And in {}?", "And {}?", "What about {}?", "How about in {}?", "And what about {}?"]).format(where), {self.city: where}

    def both(self, c):
        if c.rng.random() < 0.2:
            three = cities(c, 3)
            return "What is the weather in {}, {} and {}?".format(*three), [{self.city: x} for x in three]
        a, b = cities(c, 2)
        text = c.rng.choice(["What is the weather in {} and {}?", "Compare the weather in {} and {}.", "How is the weather in {} and in {}?", "Is it warmer in {} or in {}?", "Weather in {} and {}?", "Get the weather for {} and {}."])
        return text.format(a, b), [{self.city: a}, {self.city: b}]

    def run(self, rng, arguments):
        where, degrees = arguments[self.city], rng.randint(-15, 38)
        sky = rng.choice(["rain", "sun", "snow", "clouds", "fog", "wind", "clear", "cloudy", "sunny"])
        shown = rng.choice(
            [{"temperature": degrees, "condition": sky}, {"condition": sky, "temperature": degrees}, {"temp_c": degrees, "sky": sky}, {"temperature": degrees, "unit": "celsius", "weather": sky},
             {"city": where, "temperature": degrees, "condition": sky}, f"{degrees} degrees, {sky}", f"{degrees}°C, {sky}", f"{sky}, {degrees} C"]
        )  # fmt: skip
        return shown, f"In {where} it is {degrees} degrees, {sky}.", [where, str(degrees), sky]


class Calculator(Tool):
    names = ["calculator", "calculate", "calc", "compute", "evaluate", "do_math", "eval_expression"]
    about = ["Evaluate an arithmetic expression.", "A calculator", "Calculates a result", "Compute the value of an expression", "Do arithmetic"]
    missing = TOO_HARD

    def build(self, rng):
        self.split = rng.random() < 0.3
        if self.split:
            self.a = self.param(rng, ["a", "x", "left", "first"], "number", "First number")
            self.b = self.param(rng, ["b", "y", "right", "second"], "number", "Second number")
            if self.b in ("right", "second", "y", "b"):
                pairs = {"a": "b", "x": "y", "left": "right", "first": "second"}
                self.props[pairs[self.a]] = self.props.pop(self.b)
                self.b = pairs[self.a]
                self.required = [self.a, self.b]
            self.op = self.param(rng, ["operation", "op", "operator"], about="What to do", enum=["add", "subtract", "multiply", "divide"])
        else:
            self.expression = self.param(rng, ["expression", "expression", "expr", "formula", "input"], about="The expression, e.g. 2 * 3")

    def _arguments(self, a, op, b):
        if self.split:
            return {self.a: a, self.b: b, self.op: {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}[op]}
        return {self.expression: f"{a} {op} {b}"}

    def _numbers(self, c):
        rng = c.rng
        size = rng.choice([99, 999, 999, 9999])
        return c.value(lambda: (rng.randint(2, size), rng.choice("+-**/"), rng.randint(2, size)), key=lambda n: f"{n[0]}{n[1]}{n[2]}")

    def ask(self, c):
        rng = c.rng
        a, op, b = self._numbers(c)
        spoken = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[op]
        shown = rng.choice([f"{a} {op} {b}", f"{a} {op} {b}", f"{a} {spoken} {b}", f"{a}{op}{b}"])
        text = rng.choice(["What is {}?", "What is {}?", "How much is {}?", "Calculate {}.", "Compute {}", "{}", "Please calculate {}.", "Use the calculator: {}", "What's {}?", "{} = ?", "I need the result of {}."])
        return text.format(shown), self._arguments(a, op, b)

    def again(self, c):
        a, op, b = self._numbers(c)
        return c.rng.choice(["And {}?", "And what is {}?", "What about {}?"]).format(f"{a} {op} {b}"), self._arguments(a, op, b)

    def both(self, c):
        one, two = self._numbers(c), self._numbers(c)
        shown = ["{} {} {}".format(*n) for n in (one, two)]
        text = c.rng.choice(["What is {} and {}?", "Calculate {} and {}.", "Compute {} and also {}."])
        return text.format(*shown), [self._arguments(*one), self._arguments(*two)]

    def run(self, rng, arguments):
        if self.split:
            a, b = arguments[self.a], arguments[self.b]
            op = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}[arguments[self.op]]
        else:
            a, op, b = arguments[self.expression].split()
            a, b = int(a), int(b)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": round(a / b, 2)}[op]
        shown = rng.choice([{"result": value}, {"result": value}, str(value), {"value": value}, {"answer": value}])
        return shown, f"{a} {op} {b} = {value}.", [str(value)]


class Search(Tool):
    names = ["search", "web_search", "search_web", "internet_search", "lookup", "find_information", "google"]
    about = ["Search the web.", "Search the internet for a query", "Find information on the web", "Web search", "Looks things up online"]
    missing = "I have no tool to search with, so I cannot look that up."

    def build(self, rng):
        self.query = self.param(rng, ["query", "query", "q", "search_query", "terms"], about=rng.choice(["What to search for", "The search query"]))
        self.limit = rng.random() < 0.3 and self.param(rng, ["limit", "max_results", "count"], "integer", "How many results", required=False)

    def _query(self, c):
        rng = c.rng
        return c.value(lambda: rng.choice([rng.choice(words.TOPICS), phrase(rng), f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.TOPICS)}", f"{rng.choice(words.TOPICS)} in {rng.choice(words.CITIES)}", words.made_up(rng), f"history of {rng.choice(words.TOPICS)}", f"{rng.choice(words.NAMES)} {words.made_up(rng).capitalize()}"]))

    def ask(self, c):
        rng = c.rng
        query = self._query(c)
        text = rng.choice(["Search for {}.", "Search for {}", "Search the web for {}.", "Look up {}.", "Find information about {}.", "Please search for {}.", "Can you look up {}?", "What can you find about {}?", "Search: {}", "Google {}", "Do a web search for {}", "Find {} on the web."])
        arguments = {self.query: query}
        if self.limit and rng.random() < 0.5:
            arguments[self.limit] = rng.randint(1, 20)
            return text.format(query).rstrip(".?") + f", {arguments[self.limit]} results", arguments
        return text.format(query), arguments

    def again(self, c):
        query = self._query(c)
        return c.rng.choice(["Now search for {}.", "And {}?", "What about {}?"]).format(query), {self.query: query}

    def both(self, c):
        a, b = self._query(c), self._query(c)
        return c.rng.choice(["Search for {} and for {}.", "Look up {} and {}."]).format(a, b), [{self.query: a}, {self.query: b}]

    def run(self, rng, arguments):
        query = arguments[self.query]
        fact = rng.choice([f"the best guide to {query}", f"all about {query} in ten pages", f"{query} was in the news in {rng.randint(1990, 2030)}", f"{rng.choice(words.NAMES)} wrote about {query}", f"{rng.randint(2, 90)} facts on {query}"])
        site = words.made_up(rng) + rng.choice([".org", ".com", ".net"])
        shown = rng.choice([{"results": [{"title": fact, "url": site}]}, [{"title": fact, "site": site}], {"results": [{"site": site, "title": fact}]}, f"{site}: {fact}"])
        return shown, f"I found this on {site}: {fact}.", [fact]


class Time(Tool):
    names = ["get_time", "get_time", "get_current_time", "current_time", "time", "clock", "world_clock", "getTime"]
    about = ["Get the current time of a city.", "Current time in a place", "Tells the local time", "World clock"]
    missing = "I have no clock, so I cannot tell the time."

    def build(self, rng):
        self.city = self.param(rng, ["city", "city", "location", "place", "city_name"], about=rng.choice(["Name of the city", "The city"]))

    def ask(self, c):
        where = c.value(lambda: city(c.rng))
        text = c.rng.choice(["What time is it in {}?", "What time is it in {}?", "What is the time in {}?", "Tell me the time in {}.", "Time in {}?", "How late is it in {}?", "What's the time in {} now?", "Is it night in {}?", "Current time in {}", "Please check the clock in {}."])
        return text.format(where), {self.city: where}

    again = Weather.again

    def both(self, c):
        a, b = cities(c, 2)
        return c.rng.choice(["What time is it in {} and {}?", "Tell me the time in {} and in {}.", "Time in {} and {}?"]).format(a, b), [{self.city: a}, {self.city: b}]

    def run(self, rng, arguments):
        where, now = arguments[self.city], f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        shown = rng.choice([{"time": now}, {"time": now}, now, {"local_time": now}, {"city": where, "time": now}, f"It is {now} there"])
        return shown, f"It is {now} in {where}.", [now, where]


class Message(Tool):
    names = ["send_message", "send_email", "message", "send_sms", "notify"]
    about = ["Send a message to a person.", "Sends a text to somebody", "Send a message"]
    missing = "I have no tool to send messages."

    def build(self, rng):
        self.to = self.param(rng, ["to", "recipient", "name", "person"], about="Who gets it")
        self.text = self.param(rng, ["text", "message", "body", "content"], about="What to send")

    def ask(self, c):
        rng = c.rng
        to = c.value(lambda: rng.choice(words.NAMES) if rng.random() < 0.6 else words.made_up(rng).capitalize())
        text = c.value(lambda: rng.choice([phrase(rng), f"I am late, see you in {rng.randint(2, 90)} minutes", f"the {phrase(rng)} is ready", f"meet me in {city(rng)}", f"happy birthday {to}"]))
        ask = rng.choice(["Send a message to {}: {}", "Send {} this message: {}", "Write to {}: {}", "Tell {}: {}", "Message {}: {}", 'Send "{1}" to {0}.'])
        return ask.format(to, text), {self.to: to, self.text: text}

    def run(self, rng, arguments):
        to = arguments[self.to]
        return rng.choice([{"status": "sent"}, "ok", {"ok": True}, {"sent": True}]), f"The message to {to} was sent.", [to]


class Timer(Tool):
    names = ["set_timer", "start_timer", "timer", "create_timer", "set_alarm"]
    about = ["Set a timer.", "Starts a timer for some minutes", "Countdown timer"]
    missing = "I have no tool for timers."

    def build(self, rng):
        self.minutes = self.param(rng, ["minutes", "duration_minutes", "duration", "mins"], "integer", "Minutes to wait")

    def ask(self, c):
        minutes = c.rng.randint(1, 120)
        ask = c.rng.choice(["Set a timer for {} minutes.", "Start a timer of {} minutes", "Wake me in {} minutes.", "Timer, {} minutes please.", "Remind me in {} minutes."])
        return ask.format(minutes), {self.minutes: minutes}

    def run(self, rng, arguments):
        minutes = arguments[self.minutes]
        return rng.choice([{"status": "started"}, "ok", {"ok": True}]), f"The timer is set to {minutes} minutes.", [str(minutes)]


class Convert(Tool):
    names = ["convert_currency", "currency", "convert", "exchange_rate", "currency_converter"]
    about = ["Convert an amount of money.", "Currency conversion", "Converts between currencies"]
    missing = "I have no tool for currencies."

    def build(self, rng):
        self.amount = self.param(rng, ["amount", "value"], "number", "How much")
        self.old, self.new = rng.choice([("from", "to"), ("from_currency", "to_currency"), ("source", "target")])
        self.props |= {self.old: {"type": "string"}, self.new: {"type": "string"}}
        self.required += [self.old, self.new]

    def ask(self, c):
        rng = c.rng
        amount, (a, b) = rng.randint(1, 5000), rng.sample(["USD", "EUR", "JPY", "GBP", "CHF", "CNY", "SEK", "CAD"], 2)
        ask = rng.choice(["Convert {} {} to {}.", "How much is {} {} in {}?", "What are {} {} in {}?", "Change {} {} into {}"])
        return ask.format(amount, a, b), {self.amount: amount, self.old: a, self.new: b}

    def run(self, rng, arguments):
        got = rng.randint(1, 9000)
        shown = rng.choice([{"result": got}, {"converted": got}, str(got)])
        return shown, f"{arguments[self.amount]} {arguments[self.old]} are {got} {arguments[self.new]}.", [str(got)]


class Translate(Tool):
    names = ["translate", "translate_text", "translator"]
    about = ["Translate a text.", "Translates text into a language", "Translation"]
    missing = "I have no tool for translations."

    def build(self, rng):
        self.text = self.param(rng, ["text", "input", "phrase"], about="Text to translate")
        self.to = self.param(rng, ["language", "target_language", "to", "target"], about="Language to translate into")

    def ask(self, c):
        rng = c.rng
        text, to = c.value(lambda: phrase(rng)), rng.choice(["French", "German", "Spanish", "Italian", "Dutch", "Polish", "Greek", "Korean"])
        ask = rng.choice(['Translate "{}" into {}.', "Translate {} to {}.", 'What is "{}" in {}?', 'How do you say "{}" in {}?'])
        return ask.format(text, to), {self.text: text, self.to: to}

    def run(self, rng, arguments):
        got = " ".join(words.made_up(rng) for _ in range(rng.randint(1, 3)))
        return rng.choice([{"translation": got}, got, {"text": got}]), f'In {arguments[self.to]} it is "{got}".', [got]


class Invented(Tool):
    """A function nobody has heard of, whose arguments are all given in the question."""

    names = [""]
    about = [""]
    missing = "I have no tool for that."
    _NAMES = "color size count level name item speed mode label id price room key value title target source city date weight note user path code".split()

    def build(self, rng):
        pick = rng.random()
        verb, noun = rng.choice(words.VERBS), rng.choice(words.NOUNS)
        self.name = f"{verb}_{noun}" if pick < 0.7 else f"{words.made_up(rng)}_{noun}" if pick < 0.85 else f"{verb}{noun.capitalize()}" if pick < 0.93 else f"{verb}-{noun}"
        self.spoken = f"{verb} the {noun}" if verb in self.name else self.name
        self.about = [f"{verb.capitalize()} the {noun}.", f"{verb.capitalize()}s a {noun}", f"Use this to {verb} a {noun}.", f"{noun} tool"]
        self.kinds = {}
        for name in rng.sample(self._NAMES, rng.choice([0, 1, 1, 2, 2, 3])):
            kind = rng.choice(["string", "string", "integer", "integer", "boolean", "enum", "number", "array"])
            options = {"enum": rng.sample(words.ADJECTIVES, 3)} if kind == "enum" else {"items": {"type": "string"}} if kind == "array" else {}
            self.param(rng, [name], "string" if kind == "enum" else kind, f"The {name} of the {noun}", required=rng.random() < 0.7, **options)
            self.kinds[name] = kind

    def _value(self, c, name):
        rng = c.rng
        match self.kinds[name]:
            case "string":
                return c.value(lambda: rng.choice([rng.choice(words.NOUNS), words.made_up(rng), rng.choice(words.NAMES), rng.choice(words.CITIES)]))
            case "integer":
                return rng.randint(0, rng.choice([9, 99, 999]))
            case "number":
                return rng.choice([rng.randint(0, 99), rng.randint(1, 99) + 0.5])
            case "boolean":
                return rng.random() < 0.5
            case "array":
                return rng.sample(words.NOUNS, rng.randint(1, 3))
            case _:
                return rng.choice(self.props[name]["enum"])

    def ask(self, c):
        rng = c.rng
        asked = [n for n in self.props if n in self.required or rng.random() < 0.6]
        arguments = {n: self._value(c, n) for n in asked}
        form = rng.choice(["{} {}", "{} = {}", "{}: {}", "{} is {}"])
        spoken = lambda v: str(v).lower() if isinstance(v, bool) else f"[{', '.join(v)}]" if isinstance(v, list) else v
        shown = [form.format(n, spoken(v)) for n, v in arguments.items()]
        lead = rng.choice([f"Please {self.spoken}", f"{self.spoken[0].upper()}{self.spoken[1:]}", f"Call {self.name}", f"Use {self.name}", f"Use the tool {self.name}", f"Run {self.name}", f"Can you {self.spoken}"])
        joined = shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else ""
        return lead + (rng.choice([" with ", ", ", ": "]) + joined if shown else "") + rng.choice([".", "", "."]), arguments

    def run(self, rng, arguments):
        done = rng.choice(["done", "ok", "finished", "accepted", "started"])
        number = rng.randint(1, 9999)
        shown, told = rng.choice(
            [({"status": done}, f"The tool {self.name} answered: {done}."), ({"id": number, "status": done}, f"The tool {self.name} answered: {done}, id {number}."), (done, f"The tool {self.name} answered: {done}.")]
        )
        return shown, told, [done]


KINDS = [Weather, Calculator, Search, Time, Message, Timer, Convert, Translate]
MAIN = [Weather, Calculator, Search, Time]


def declare(rng):
    """A set of tools with distinct names, mostly of the four main kinds."""
    count = rng.choice([1, 1, 1, 2, 2, 3, 4])
    if rng.random() < 0.05:
        chosen = list(MAIN)
    else:
        chosen = [rng.choice(MAIN) if rng.random() < 0.6 else rng.choice([*KINDS, Invented, Invented, Invented]) for _ in range(count)]
    made, names, kinds = [], set(), set()
    for kind in chosen:
        tool = kind(rng)
        if tool.name not in names and (kind is Invented or kind not in kinds):
            made.append(tool)
            names.add(tool.name)
            kinds.add(kind)
    rng.shuffle(made)
    return made


def _run(c, question, named):
    """Appends question, calls, results and the answer. `named` is [(tool, arguments)]."""
    rng = c.rng
    turn = calls(c.calls, *((t.name, a) for t, a in named))
    c.messages += [user(question), turn]
    c.check(kind="tool_call", calls=[[t.name, a] for t, a in named])
    c.calls += len(named)
    told, keys = [], []
    for call, (tool, arguments) in zip(turn["tool_calls"], named):
        if rng.random() < 0.04:
            error = rng.choice(["not found", "no connection", "timeout", "not allowed", "server is busy"])
            shown, text, key = {"error": error}, f"The tool answered with an error: {error}.", [error]
        else:
            shown, text, key = tool.run(rng, arguments)
        message = result(call, shown)
        if rng.random() < 0.15:
            message["name"] = tool.name
        c.messages.append(message)
        told.append(text)
        keys += key
    c.messages.append(assistant(" ".join(told)))
    return {"kind": "tool_answer", "keys": keys}


def one_call(c):
    tool = c.rng.choice(c.tools)
    question, arguments = tool.ask(c)
    if c.rng.random() < 0.25 and not isinstance(tool, Invented) and '"' not in question:
        question = c.rng.choice(["Please: ", "Hi! ", "OK, now: ", "Thanks. ", "Hello. ", "Next: "]) + question
    c.last = tool
    return _run(c, question, [(tool, arguments)])


def follow_up(c):
    """"And in Rome?" after a call of the same kind."""
    if not hasattr(c.last, "again"):
        return one_call(c)
    question, arguments = c.last.again(c)
    return _run(c, question, [(c.last, arguments)])


def two_calls(c):
    rng = c.rng
    first = rng.choice(c.tools)
    if hasattr(first, "both") and (len(c.tools) == 1 or rng.random() < 0.6):
        question, both = first.both(c)
        c.last = None
        return _run(c, question, [(first, a) for a in both])
    others = [t for t in c.tools if t is not first]
    if not others:
        return one_call(c)
    second = rng.choice(others)
    (q1, a1), (q2, a2) = first.ask(c), second.ask(c)
    joint = rng.choice([" And ", " Also: ", " Then: "])
    c.last = None
    return _run(c, (q1 if q1[-1] in ".?！？。" else q1 + ".") + joint + q2, [(first, a1), (second, a2)])


def none_fits(c):
    """A question for a kind of tool that is not declared."""
    missing = [k for k in KINDS if not any(type(t) is k for t in c.tools)]
    if not missing:
        return None
    kind = c.rng.choice(missing)
    question, arguments = kind(c.rng).ask(c)
    if kind is Calculator and max(int(n) for n in re.findall(r"\d+", str(arguments))) < 100:
        return None  # that may be easy
    c.messages += [user(question), assistant(kind.missing)]
    return {"kind": "no_call", "keys": [kind.missing]}
