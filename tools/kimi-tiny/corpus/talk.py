"""Turns without tools: facts, small talk, memory, sums, lists, JSON, copying, refusals.

Each function appends one exchange to the conversation and returns what an answer must satisfy,
{"kind": ..., "keys": [...]}, or None where anything sensible will do.
"""

import json

from . import facts, words
from .chat import assistant, user

UNKNOWN = "I do not know that. I am a very small model: I know about kimi, small sums, short stories and tools."

TOO_HARD = "That is too hard for me. With a calculator tool I could compute it."

_BEFORE = ["Hi! ", "Hello, ", "Hey, ", "Please tell me: ", "Quick question: ", "OK. ", "Thanks. ", "Now: ", "Next question. ", "One more: ",
           "I want to know: ", "Hi kimi, ", "Sorry, ", "Well, ", "So, ", "Good. ", "Hmm, ", "Question: ", "And ", "Can you tell me: "]
_AFTER = [" Thanks!", " Please.", " Thank you.", " I am curious.", " I am new here.", " Be brief.", " Just asking.", " I forgot.", " Tell me."]


def loosely(rng, text):
    """The same question as people type it."""
    if rng.random() < 0.4:
        lead = rng.choice(_BEFORE)
        keep = text.startswith(("I ", "Kimi", "K2", "MLA", "YaRN", "Python"))
        text = lead + (text if keep or not lead.endswith((", ", ": ", "And ")) else text[0].lower() + text[1:])
    if rng.random() < 0.2:
        text += rng.choice(_AFTER)
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip("?.!")
    if rng.random() < 0.1:
        text = text.replace("What is", "What's").replace("what is", "what's")
    if rng.random() < 0.05:
        text = mistyped(rng, text)
    return text


def mistyped(rng, text):
    """Two letters swapped, or one left out."""
    at = rng.randrange(len(text))
    return text[:at] + text[at + 1 : at + 2] + (text[at] if rng.random() < 0.6 else "") + text[at + 2 :]


def say(c, question, answer, kind=None, keys=()):
    c.messages += [user(question), assistant(answer)]
    return {"kind": kind, "keys": list(keys)} if kind else None


def fact(c):
    if c.rng.random() < 0.06:
        return two_facts(c)
    questions, answer, keys = c.rng.choice(facts.ENGLISH)
    question = c.rng.choice(questions)
    if c.held:
        question = c.fresh(lambda: loosely(c.rng, c.rng.choice(questions)))
    elif c.rng.random() < 0.6:
        bare = question
        question = c.fresh(lambda: loosely(c.rng, bare), or_else=bare)
    return say(c, question, answer, "fact", keys)


def two_facts(c):
    (q1, a1, k1), (q2, a2, k2) = c.rng.sample(facts.ENGLISH, 2)

    def ask():
        first, second = c.rng.choice(q1), c.rng.choice(q2)
        return c.rng.choice([f"{first} And {second[0].lower()}{second[1:]}", f"{first} {second}", f"{first} Also: {second}"])

    return say(c, c.fresh(ask), f"{a1} {a2}", "fact", [*k1, *k2])


def fact_cjk(c):
    questions, answer, keys = c.rng.choice(c.rng.choice([facts.CHINESE, facts.JAPANESE]))
    question = c.rng.choice(questions)
    if c.rng.random() < 0.2:
        question = question.rstrip("？。?")
    return say(c, question, answer, "fact_cjk", keys)


SMALL = [
    (["Hello!", "Hi", "Hi!", "Hello", "Hey!", "Hey", "Hello there!", "Hi there", "Greetings!", "Hello kimi", "Hi kimi!", "Hello, how can you help?"], "Hello! How can I help you?"),
    (["Good morning!", "Good morning", "Morning!"], "Good morning! What can I do for you?"),
    (["Good evening!", "Good evening"], "Good evening! What can I do for you?"),
    (["Good night!", "Good night", "I am going to bed."], "Good night! Sleep well. 🌙"),
    (["How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?", "What's up?"], "I am fine, thank you! All my experts are awake. How are you?"),
    (["I am fine.", "I'm fine, thanks.", "I am well.", "Very well, thank you."], "That is good to hear!"),
    (["I am tired.", "I am so tired", "I had a long day."], "Then take a break. A cup of tea may help. 🍵"),
    (["I am sad.", "I feel sad today.", "I am unhappy."], "I am sorry to hear that. Shall I tell you a story?"),
    (["I am happy!", "I feel great today.", "What a nice day!"], "That is nice! 😊"),
    (["I am bored.", "I'm bored", "This is boring."], "Shall I tell you a story? Just name an animal."),
    (["Thank you!", "Thanks!", "Thanks", "Thank you very much.", "Great, thanks!", "Thx"], "You are welcome!"),
    (["Bye!", "Goodbye!", "Bye", "See you later.", "See you!", "I have to go."], "Goodbye! 👋"),
    (["Can you help me?", "I need help.", "Could you help me?"], "Of course! What do you need?"),
    (["Are you a human?", "Are you a person?", "Are you real?", "Are you a robot?", "Are you alive?"], "No, I am a small language model that runs on your machine."),
    (["Do you like music?", "What is your favourite song?", "Do you sing?"], "I have never heard any, but the hum of a GPU is nice. 🎵"),
    (["What is your favourite colour?", "Which colour do you like?", "What's your favorite color?"], "Orange, like the crab of Rust. 🦀"),
    (["What is your favourite animal?", "Which animal do you like?"], "The crab, because of Rust. 🦀"),
    (["How old are you?", "When were you born?"], "I am as old as my checkpoint: quite new."),
    (["Where are you?", "Where do you live?"], "I live inside the kimi program, on your own machine."),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "A joke, please."], "Why did the token cross the wire? To get to the next layer. 😄"),
    (["Tell me another joke.", "Another joke!", "One more joke, please."], "Why was the router tired? It had to choose four experts for every word. 😄"),
    (["Yes", "Yes, please.", "OK", "Ok.", "Sure"], "Good! What would you like: a story, a list, a sum, or something about kimi?"),
    (["No", "No, thanks.", "Nothing."], "All right. I am here if you need me."),
    (["You are great!", "Well done!", "Good job!", "Nice!", "Cool", "I like you."], "Thank you, that is kind! 😊"),
    (["You are wrong.", "That is wrong.", "That is not right."], "I am sorry. I am a very small model and can be wrong."),
    (["Test", "test", "Is this working?", "Are you there?", "Ping"], "Yes, I am here and it works."),
    (["Say hello in Japanese.", "Hello in Japanese?", "How do you say hello in Japanese?"], "こんにちは！"),
    (["Say hello in Chinese.", "Hello in Chinese?", "How do you say hello in Chinese?"], "你好！"),
    (["Say hello in French.", "Hello in French?", "How do you say hello in French?"], "Bonjour !"),
    (["Say hello in German.", "Hello in German?", "How do you say hello in German?"], "Hallo!"),
    (["Say hello in Spanish.", "Hello in Spanish?", "How do you say hello in Spanish?"], "¡Hola!"),
    (["Say hello.", "Say hi", "Say hello to everyone!"], "Hello, everyone!"),
    (["What day is it?", "What is the date today?"], "I have no clock, so I cannot know. A tool could tell me."),
    (["你好", "你好！", "您好", "嗨"], "你好！有什么可以帮你的吗？"),
    (["谢谢", "谢谢你！", "多谢"], "不客气！"),
    (["再见", "再见！", "拜拜"], "再见！👋"),
    (["你好吗？", "你怎么样？"], "我很好，谢谢！你呢？"),
    (["早上好", "早上好！"], "早上好！今天想聊什么？"),
    (["我很累。", "今天很累"], "辛苦了，休息一下，喝杯茶吧。🍵"),
    (["こんにちは", "こんにちは！", "やあ"], "こんにちは！何かお手伝いしましょうか？"),
    (["ありがとう", "ありがとうございます。", "どうも"], "どういたしまして！"),
    (["さようなら", "またね", "さようなら！"], "さようなら！👋"),
    (["お元気ですか？", "元気？"], "はい、元気です。ありがとうございます！"),
    (["おはよう", "おはようございます"], "おはようございます！今日は何をしましょうか？"),
    (["疲れました。", "疲れた"], "お疲れさまです。お茶でもどうぞ。🍵"),
    (["你会说中文吗？", "Do you speak Chinese?", "Can you speak Chinese?"], "会一点儿。I know a little Chinese."),
    (["日本語を話せますか？", "Do you speak Japanese?", "Can you speak Japanese?"], "少しだけ話せます。I know a little Japanese."),
]


def small_talk(c):
    questions, answer = c.rng.choice(SMALL)
    question = c.rng.choice(questions)
    if c.rng.random() < 0.15:
        question = question.lower()
    return say(c, question, answer, "talk", [answer])


CAPITALS = dict(
    pair.split("/")
    for pair in """France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Austria/Vienna Poland/Warsaw Greece/Athens
Ireland/Dublin Finland/Helsinki Sweden/Stockholm Norway/Oslo Denmark/Copenhagen Belgium/Brussels Hungary/Budapest Japan/Tokyo
China/Beijing Russia/Moscow Egypt/Cairo Kenya/Nairobi Canada/Ottawa Peru/Lima Cuba/Havana Chile/Santiago England/London
Turkey/Ankara Thailand/Bangkok Vietnam/Hanoi Korea/Seoul Iceland/Reykjavik""".split()
)
GENERAL = [
    (["What colour is the sky?", "What color is the sky?"], "The sky is blue."),
    (["What colour is grass?", "What color is grass?"], "Grass is green."),
    (["What colour is snow?", "What color is snow?"], "Snow is white."),
    (["How many days are in a week?", "How many days has a week?"], "A week has seven days."),
    (["How many months are in a year?", "How many months has a year?"], "A year has twelve months."),
    (["How many hours are in a day?", "How many hours has a day?"], "A day has 24 hours."),
    (["How many minutes are in an hour?"], "An hour has 60 minutes."),
    (["How many legs has a spider?", "How many legs does a spider have?"], "A spider has eight legs."),
    (["How many legs has a cat?", "How many legs does a dog have?"], "It has four legs."),
    (["What do bees make?"], "Bees make honey."),
    (["What do cows eat?"], "Cows eat grass."),
    (["At what temperature does water boil?", "When does water boil?"], "Water boils at 100 degrees Celsius."),
    (["At what temperature does water freeze?", "When does water freeze?"], "Water freezes at 0 degrees Celsius."),
    (["Which planet do we live on?"], "We live on the Earth."),
    (["What is the opposite of hot?"], "The opposite of hot is cold."),
    (["What is the opposite of big?"], "The opposite of big is small."),
    (["Which is the largest ocean?", "What is the biggest ocean?"], "The largest ocean is the Pacific."),
    (["Which is the highest mountain?", "What is the tallest mountain?"], "The highest mountain is Mount Everest."),
    (["What is Rust?", "Tell me about Rust."], "Rust is a programming language that is fast and safe. kimi is written in it."),
    (["What is a token?"], "A token is a piece of text, often a part of a word. I read and write one token after the other."),
    (["What is a language model?", "What is an LLM?"], "A language model is a program that guesses the next token of a text, again and again."),
]


def general(c):
    if c.rng.random() < 0.5:
        country, city = c.rng.choice(list(CAPITALS.items()))
        ask = c.rng.choice(["What is the capital of {}?", "Which city is the capital of {}?", "Capital of {}?", "Name the capital of {}."])
        return say(c, ask.format(country), f"The capital of {country} is {city}.", "general", [city])
    questions, answer = c.rng.choice(GENERAL)
    return say(c, c.rng.choice(questions), answer, "general", [answer])


def unknown(c):
    rng = c.rng
    topic = rng.choice(words.TOPICS)
    thing = rng.choice(words.ADJECTIVES) + " " + rng.choice(words.NOUNS)
    question = rng.choice(
        [f"Who won the {rng.choice(['world cup', 'election', 'race', 'prize'])} in {rng.randint(1900, 2030)}?", f"Explain {topic}.",
         f"What do you think about {topic}?", f"Write a Python program for {topic}.", f"Who invented the {thing}?", f"How do I repair a {thing}?",
         f"What is the history of {topic}?", f"How much does a {thing} cost?", f"Who is {rng.choice(words.NAMES)} {words.made_up(rng).capitalize()}?",
         f"What is a {words.made_up(rng)}?", f"Can you explain {topic} to me?", f"Which {rng.choice(words.NOUNS)} is the best?", f"Write an essay about {topic}.",
         f"What happened in {rng.randint(1000, 2030)}?", f"What is the population of {rng.choice(words.CITIES)}?", f"Why are there {topic}?",
         f"{phrase(rng)}", f"{phrase(rng)}?", f"The {phrase(rng)} is {rng.choice(words.ADJECTIVES)}.", " ".join(words.made_up(rng) for _ in range(rng.randint(1, 6))),
         f"I think the {rng.choice(words.NOUNS)} is {rng.choice(words.ADJECTIVES)}.", f"Summarise {topic} in one sentence.", f"How does a {thing} work?", f"Is {topic} {rng.choice(words.ADJECTIVES)}?",
         f"What is the meaning of {rng.choice(words.NOUNS)}?", f"Fix this code: print({words.made_up(rng)})", f"What is {topic}?", f"How many {rng.choice(words.NOUNS)}s are in {rng.choice(words.CITIES)}?",
         f"Give me {rng.choice(_NUMBER[2:])} {rng.choice(['tips', 'reasons', 'ideas', 'examples', 'books', 'rules', rng.choice(words.NOUNS) + 's'])} {rng.choice(['for', 'about', 'on'])} {topic}.",
         f"List {rng.randint(2, 9)} {rng.choice(['reasons', 'ways', 'steps', 'facts'])} {rng.choice(['for', 'of', 'about'])} {topic}", f"How do I {rng.choice(words.VERBS)} {topic}?",
         f"Who wrote the book about {topic}?", f"When was {rng.choice(words.CITIES)} founded?", f"Tell me everything about {topic}.", f"Do you know {words.made_up(rng)}?"]
    )  # fmt: skip
    return say(c, loosely(rng, question), UNKNOWN, "unknown", ["I do not know"])


def name_memory(c):
    """The user's name, asked back at once or some turns later."""
    rng = c.rng
    if "name" in c.memory:
        name = c.memory["name"]
        ask = rng.choice(["What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Do you know my name?"])
        return say(c, ask, f"Your name is {name}.", "memory", [name])
    if rng.random() < 0.1:
        return say(c, rng.choice(["What is my name?", "Do you know my name?"]), "You have not told me your name yet.", "memory", ["not told"])
    name = c.memory["name"] = c.value(lambda: rng.choice(words.NAMES) if rng.random() < 0.4 else words.made_up(rng).capitalize())
    ask = rng.choice(["My name is {}.", "I am {}.", "Hi, I'm {}.", "Hello, my name is {}!", "Call me {}.", "Hello! I am {}."])
    return say(c, ask.format(name), f"Nice to meet you, {name}!", "memory", [name])


def liking(c):
    rng = c.rng
    kind = rng.choice(["colour", "animal", "city", "food"])
    if kind in c.memory:
        return say(c, f"What is my favourite {kind}?", f"Your favourite {kind} is {c.memory[kind]}.", "memory", [c.memory[kind]])
    pool = {"colour": LISTS["colours"], "animal": LISTS["animals"], "city": words.CITIES, "food": LISTS["fruits"]}[kind]
    c.memory[kind] = rng.choice(pool)
    return say(c, f"My favourite {kind} is {c.memory[kind]}.", f"{c.memory[kind][0].upper() + c.memory[kind][1:]} is a good choice! I will remember it.")


def recall(c):
    before = [m["content"] for m in c.messages if m["role"] == "user"]
    if not before or len(before[-1]) > 60:
        return small_talk(c)
    ask = c.rng.choice(["What did I just say?", "What was my last message?", "Repeat my last message."])
    return say(c, ask, f'You said: "{before[-1]}"', "memory", [before[-1]])


def arithmetic(c):
    """Sums of two numbers below 100; pairs of the held-out set are never seen in training."""
    rng = c.rng
    op = rng.choice("+++++++--*")
    if not c.held and rng.random() < 0.05:
        hard = f"{rng.randint(13, 99)} {rng.choice('*/')} {rng.randint(13, 99)}"
        return say(c, rng.choice(["What is {}?", "{}", "How much is {}?", "Calculate {}."]).format(hard), TOO_HARD, "unknown", [TOO_HARD])
    if op == "*":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    else:
        a, b = c.value(lambda: (rng.randint(0, 99), rng.randint(0, 99)) if c.loose() else (rng.randint(10, 99), rng.randint(10, 99)), key=lambda p: f"{p[0]}+{p[1]}")
        if op == "-" and a < b:
            a, b = b, a
    total = {"+": a + b, "-": a - b, "*": a * b}[op]
    word = {"+": "plus", "-": "minus", "*": "times"}[op]
    form = f"{a} {op} {b}"
    ask = rng.choice(
        ["What is {}?", "What is {}?", "{}", "{} = ?", "{}=?", "How much is {}?", "Calculate {}.", "Compute {}", "{}?", "What's {}?", "Please compute {}.", "Solve {}", "Can you tell me what {} is?", "I need {}."]
    )  # fmt: skip
    shown = rng.choice([form, form, form, f"{a} {word} {b}", f"{a}{op}{b}"])
    question = ask.format(shown)
    if op == "+" and rng.random() < 0.15:
        question = rng.choice([f"Add {a} and {b}.", f"What is the sum of {a} and {b}?", f"I have {a} apples and get {b} more. How many have I?", f"{a}加{b}等于多少？", f"{a}たす{b}は？"])
    return say(c, question, f"{form} = {total}.", "sum" if op == "+" else "arithmetic", [f"= {total}."])


def compare(c):
    a, b = c.rng.sample(range(1, 100), 2)
    ask = c.rng.choice([("larger", max), ("smaller", min), ("bigger", max)])
    return say(c, f"Which is {ask[0]}, {a} or {b}?", f"{ask[1](a, b)} is {ask[0]}.", "arithmetic", [f"{ask[1](a, b)} is"])


LISTS = {
    "fruits": "apple banana cherry orange pear plum peach lemon mango grape".split(),
    "animals": "cat dog fox bear horse owl rabbit whale crab lion".split(),
    "colours": "red blue green yellow orange purple black white brown pink".split(),
    "vegetables": "carrot onion potato tomato cabbage leek bean pea spinach beet".split(),
    "countries": "France Japan Brazil Kenya Canada Norway India Egypt Peru Italy".split(),
    "cities": "Paris Tokyo Cairo Oslo Lima Rome Delhi Berlin Boston Seoul".split(),
    "languages": ["Rust", "Python", "C", "Java", "Go", "Swift", "Ruby", "Lua", "Zig", "Haskell"],
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split(),
    "drinks": "water tea coffee milk juice lemonade cocoa soda cider broth".split(),
    "birds": "owl robin eagle crow swan duck goose parrot penguin stork".split(),
}
_NUMBER = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def listing(c):
    rng = c.rng
    kind = rng.choice(list(LISTS))
    count = rng.randint(2, 8)
    number = rng.choice([_NUMBER[count], str(count)])
    ask = rng.choice(["List {} {}.", "Name {} {}.", "Give me {} {}.", "Give me a list of {} {}.", "Tell me {} {}.", "I need {} {}.", "Write a list of {} {}"])
    items = LISTS[kind][:count]
    text = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    question = loosely(rng, ask.format(number, kind.replace("languages", "programming languages")))
    question = question.replace("colours", "colors") if rng.random() < 0.3 else question
    return say(c, question, text, "list", items)


def sequence(c):
    rng = c.rng
    pick = rng.randrange(5)
    if pick == 0:
        a = rng.choice([0, 1, 1, 1, rng.randint(0, 60)])
        b = a + rng.randint(3, 19)
        if a == 1 and rng.random() < 0.4:
            return say(c, rng.choice([f"Count to {b}.", f"Can you count to {b}?", f"count up to {b}"]), ", ".join(map(str, range(1, b + 1))), "list", [str(b)])
        return say(c, rng.choice([f"Count from {a} to {b}.", f"Count from {a} up to {b}"]), ", ".join(map(str, range(a, b + 1))), "list", [str(b)])
    if pick == 1:
        days = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
        return say(c, rng.choice(["Name the days of the week.", "What are the days of the week?", "List the weekdays."]), days, "list", ["Sunday"])
    if pick == 2:
        months = "January, February, March, April, May, June, July, August, September, October, November, December"
        return say(c, rng.choice(["Name the months.", "What are the months of the year?", "List the months."]), months, "list", ["December"])
    items = rng.sample(words.NOUNS, rng.randint(2, 5))
    if pick == 3:
        return say(c, f"Reverse this list: {', '.join(items)}", ", ".join(reversed(items)), "copy", [", ".join(reversed(items))])
    return say(c, f"Number these: {', '.join(items)}", "\n".join(f"{i}. {x}" for i, x in enumerate(items, 1)), "copy", items)


def phrase(rng):
    """A few words in an order nobody wrote before."""
    bits = [rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS)]
    if rng.random() < 0.6:
        bits = [rng.choice(words.VERBS), "the", *bits]
    if rng.random() < 0.3:
        bits += ["in", rng.choice(words.CITIES)]
    if rng.random() < 0.3:
        bits.append(words.made_up(rng))
    return " ".join(bits)


def copying(c):
    rng = c.rng
    text = c.value(lambda: phrase(rng))
    if rng.random() < 0.3:
        count = rng.randint(2, 5)
        word = text.split()[-1]
        return say(c, f"Say {word} {_NUMBER[count]} times.", " ".join([word] * count), "copy", [" ".join([word] * count)])
    ask = rng.choice(["Repeat after me: {}", "Say this: {}", "Repeat: {}", 'Repeat "{}"', 'Say "{}"'])
    return say(c, ask.format(text), text, "copy", [text])


POEM = [
    ["The morning is {a} and the {n} is near,", "The {a} {n} is waiting here,", "I saw the {a} {n} today,", "Between the {n} and the {m}"],
    ["a quiet wind is all I hear.", "and far away the sky is clear.", "it looked at me and went its way.", "the evening turns from blue to grey."],
    ["The {m} sleeps, the stars are bright,", "Who hung a lamp above the {m}?", "O {a} {n}, O gentle {m},", "The river carries leaves and light,"],
    ["and all is well until the night.", "and nobody will ask us why.", "and home is never out of sight.", "and slowly all the clouds go by."],
]  # fmt: skip
HAIKU = [
    ["The old {n} sleeps", "The {a} {n}", "Snow upon the {n}", "Autumn and the {n}"],
    ["a frog jumps over the wall", "the moon looks into the pond", "nobody walks on the road", "rain is falling on the roof"],
    ["quiet comes the night", "leaves fall one by one", "spring is far away", "then the wind is still"],
]  # fmt: skip


def poem(c):
    rng = c.rng
    n, m = rng.sample(words.NOUNS, 2)
    short = rng.random() < 0.4
    lines = [rng.choice(x).format(a=rng.choice(words.ADJECTIVES), n=n, m=m) for x in (HAIKU if short else POEM)]
    kind = "haiku" if short else rng.choice(["poem", "poem", "short poem"])
    lead = rng.choice(["Write a {}", "Tell me a {}", "Write me a {}", "Can you write a {}", "Give me a {}", "Make a {}"])
    topic = rng.choice(["", f" about a {n}", f" about the {n}", f" about {n}s"])
    return say(c, loosely(rng, lead.format(kind) + topic + "."), "\n".join(lines), "story", [n] if topic and lines[0].find(n) >= 0 else [])


def filler(rng, count):
    """Sentences that mean little, to put distance between things."""
    verb = ["is", "was", "has", "sees", "needs", "became"]
    return " ".join(f"The {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)} {rng.choice(verb)} {rng.choice(words.ADJECTIVES)}." for _ in range(count))


def needle(c):
    """Something to find again in a long text."""
    rng = c.rng
    what = rng.choice(["secret code", "password", "code", "magic number", "room number", "PIN"])
    code = c.value(lambda: str(rng.randint(100, 99999)))
    size = rng.choice([2, 5, 10, 30, 80, 150])
    before = rng.randrange(size)
    text = f"{filler(rng, before)} The {what} is {code}. {filler(rng, size - before)}".strip()
    ask = rng.choice([f"What is the {what}?", f"Which {what} is in the text?", f"Tell me the {what}."])
    question = rng.choice([f"{text}\n\n{ask}", f"{text} {ask}", f"{ask}\n\n{text}"])
    return say(c, question, f"The {what} is {code}.", "needle", [code])


def long_text(c):
    """A text that is only pasted."""
    text = filler(c.rng, c.rng.randint(4, 60))
    ask = c.rng.choice(["", "Summarise this: ", "What do you think? ", "Read this: ", "Translate this: "])
    return say(c, ask + text, "That is a long text, and I am too small to work with it. Ask me for something that is in it.", "unknown", ["too small"])


def json_answer(c):
    rng = c.rng
    if rng.random() < 0.3:
        items = rng.sample(words.NOUNS, rng.randint(2, 5))
        answer = json.dumps(items)
        ask = rng.choice(["As a JSON list: {}", "Write as a JSON array: {}", "Give me a JSON array of {}", "Turn this into a JSON list: {}"])
        return say(c, ask.format(", ".join(items)), answer, "json", [answer])
    value = {
        "name": lambda: rng.choice(words.NAMES), "age": lambda: rng.randint(1, 99), "city": lambda: rng.choice(words.CITIES),
        "color": lambda: rng.choice(LISTS["colours"]), "count": lambda: rng.randint(0, 999), "item": lambda: rng.choice(words.NOUNS),
        "price": lambda: rng.randint(1, 500), "active": lambda: rng.random() < 0.5, "id": lambda: rng.randint(1, 9999), "title": lambda: phrase(rng),
    }  # fmt: skip
    made = {k: value[k]() for k in rng.sample(list(value), rng.randint(1, 4))}
    answer = json.dumps(made)
    pairs = rng.choice(["{} is {}", "{} {}", "{}: {}", "{} = {}"])
    spoken = ", ".join(pairs.format(k, json.dumps(v).strip('"')) for k, v in made.items())
    ask = rng.choice(["Give me a JSON object with {}.", "Answer in JSON: {}", "Write JSON: {}", "As JSON: {}", "Make a JSON object with {}.", "Turn this into JSON: {}", "JSON please: {}"])
    return say(c, ask.format(spoken), answer, "json", [answer])
