"""Short stories from a grammar: a hero, a place, a wish, trouble, a helper and an end."""

import zlib

from . import words
from .talk import say

HEROES = """fox bear cat dog rabbit owl mouse horse crab turtle whale dragon robot princess farmer sailor baker painter wizard
child hedgehog frog bee lion penguin king queen gardener pilot teacher""".split()
HERS = "Ana Carla Emma Greta Ida Kira Mia Olga Rosa Tina Vera Yara Zoe Alice Clara Elena".split()
HIS = "Ben David Felix Hugo Jonas Leo Nils Paul Sam Udo Willi Bob Daniel Frank Henry Jack".split()
TRAITS = "little brave curious shy clever lazy kind lonely proud cheerful sleepy hungry quiet careful".split()
PLACES = [
    "in a deep forest", "by the sea", "on a green hill", "in a small village", "at the edge of a desert", "on a quiet island",
    "in an old tower", "near a frozen lake", "under a stone bridge", "in a garden full of flowers", "on a high mountain", "in a busy harbour",
]  # fmt: skip
WISHES = [
    ("find a golden key", "the key"), ("see the stars from close by", "the stars"), ("learn to sing", "the song"), ("bake the best bread", "the bread"),
    ("build a boat", "the boat"), ("find a lost friend", "the friend"), ("read the oldest book", "the book"), ("cross the wide river", "the river"),
    ("catch the moon", "the moon"), ("grow a blue rose", "the rose"), ("win the great prize", "the prize"), ("light the dark lighthouse", "the lighthouse"),
]  # fmt: skip
TROUBLES = [
    "a storm came and the sky turned black", "the path was blocked by a fallen tree", "the map was torn in two", "a thick fog hid everything",
    "night fell and it grew very cold", "a river had washed away the bridge", "nobody knew the way", "the wind carried the map away",
]  # fmt: skip
HELPS = [
    "gave {him} a warm lamp", "showed {him} a secret path", "shared some bread and good advice", "carried {him} over the water", "sang until the fog was gone",
    "told {him} to try once more", "lent {him} a strong rope", "drew a new map in the sand",
]  # fmt: skip
ENDS = [
    "From that day on they were the best of friends.", "And if you listen at night, you can still hear them laugh.",
    "{Name} never forgot that day.", "That evening everybody danced until the moon went down.", "And {name} slept better than ever before.",
    "So {name} learned that nobody has to be brave alone.",
]  # fmt: skip
SCENES = [
    "On the first day {name} walked until the sun went down. The road was long, but a small bird sang all the way.",
    "On the second day {name} met a merchant with seven hats. He asked for a story, and gave a red hat for it.",
    "Then there was a cave. Inside it was so quiet that {name} could hear a drop of water fall, far away.",
    "In the market {name} asked everybody for help. Some laughed, some shook their heads, but an old woman smiled.",
    "At noon {name} rested under a tree. A leaf fell down, and on it somebody had written one word: onward.",
    "In the night a light moved between the trees. It was only a firefly, but it stayed until the morning.",
]


def liked(rng, key, options):
    """One of the options, every second time the one that belongs to this key: so that different
    heroes have different stories also when the likeliest token is always taken."""
    return options[zlib.crc32(key.encode()) % len(options)] if rng.random() < 0.5 else rng.choice(options)


def story(c):
    rng = c.rng
    hero = rng.choice(HEROES)
    other = liked(rng, hero + "other", [h for h in HEROES if h != hero])
    place, (wish, aim) = liked(rng, hero + "place", PLACES), liked(rng, hero + "wish", WISHES)
    long = rng.random() < 0.25
    question, named = _question(rng, hero, other, place, long)
    if not named:
        hero, other = liked(rng, "hero", HEROES), liked(rng, "other", HEROES[1:])
    return say(c, question, _tell(rng, hero, other, place, wish, aim, long), "story", [hero] if named else [])


def _article(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def _question(rng, hero, other, place, long):
    kind = "long story" if long else rng.choice(["story", "story", "short story", "tale"])
    lead = rng.choice(["Tell me a {}", "Tell a {}", "Write a {}", "Can you tell me a {}", "Please tell me a {}", "I would like a {}", "Make up a {}", "tell me a {}"])
    named = rng.random() < 0.85
    tail = ""
    if named:
        tail = f" about {_article(hero)}"
        if rng.random() < 0.3:
            tail += f" and {_article(other)}"
        if rng.random() < 0.25:
            tail += f" {place}"
    if rng.random() < 0.04:
        return rng.choice(["Once upon a time", "Once upon a time there was", "Another story, please.", "Surprise me!"]), False
    return lead.format(kind) + tail + ("?" if lead.startswith("Can") else rng.choice([".", ".", "", "!"])), named


def _tell(rng, hero, other, place, wish, aim, long):
    choose = lambda slot, options: liked(rng, hero + slot, options)
    name, friend = choose("name", HERS + HIS), choose("friend", words.NAMES[45:])
    him, he = ("her", "she") if name in HERS else ("him", "he")
    trait = choose("trait", TRAITS)
    fill = lambda t: t.format(name=name, Name=name, him=him)
    opening = choose(
        "opening",
        [f"Once upon a time there was {_article(trait)} {hero} called {name}, who lived {place}.",
         f"Long ago, {place}, lived {_article(trait)} {hero} whose name was {name}.",
         f"There once was {_article(trait)} {hero} named {name}, who lived {place}."]
    )  # fmt: skip
    first = choose("first", [f"More than anything {name} wanted to {wish}.", f"{name} had one great wish: to {wish}.", f"Every day {name} dreamed of how to {wish}."])
    start = choose("start", [f"One morning {he} set out.", f"One day {he} packed a small bag and went.", f"So one spring day {he} left home."])
    trouble = f"But {choose('trouble', TROUBLES)}."
    helped = fill(choose("help", HELPS))
    meet = choose("meet", [f"Then {friend}, {_article(other)}, came by and {helped}.", f"There {he} met {_article(other)} called {friend}, who {helped}."])
    finish = choose("finish", [f"Together they went on, and in the end they found {aim}.", f"With this help {name} did it at last: {aim} was there.", f"Side by side they kept going until they reached {aim}."])
    end = fill(choose("end", ENDS))
    if not long:
        return " ".join([opening, first, start, trouble, meet, finish, end])
    scenes = [fill(s) for s in SCENES[: choose("scenes", [3, 4, 5])]]
    return "\n\n".join([f"{opening} {first} {start}", *scenes, f"{trouble} {meet}", f"{finish} {end}"])


# (animal, name) pairs of the Chinese and Japanese stories.
CHINESE = dict(狐狸="小红", 猫="小白", 狗="小黑", 熊="大山", 兔子="小雪", 龙="阿明", 鱼="小蓝", 鸟="小云")
JAPANESE = dict(きつね="コン", ねこ="ミケ", いぬ="ハチ", くま="クマ太", うさぎ="ユキ", りゅう="タツ", さかな="アオ", とり="ソラ")


def story_cjk(c):
    rng = c.rng
    if rng.random() < 0.5:
        hero, name = rng.choice(list(CHINESE.items()))
        place, aim = rng.choice(["森林里", "大海边", "山上", "小村子里"]), rng.choice(["一把金钥匙", "天上的星星", "一条回家的路", "最甜的苹果"])
        text = f"从前，有一只{hero}叫{name}，住在{place}。有一天，{name}想找{aim}。路很远，天又黑了，{name}有点害怕。这时候来了一位朋友，给了{name}一盏灯。最后，他们一起找到了{aim}，大家都很高兴。"
        ask = rng.choice(["讲一个关于{}的故事。", "给我讲个{}的故事吧。", "请讲一个{}的小故事。"])
        return say(c, ask.format(hero), text, "story", [name])
    hero, name = rng.choice(list(JAPANESE.items()))
    place, aim = rng.choice(["森の中", "海のそば", "山の上", "小さな村"]), rng.choice(["金のかぎ", "空の星", "帰り道", "甘いりんご"])
    text = f"むかしむかし、{place}に{name}という{hero}がいました。ある日、{name}は{aim}をさがしに行きました。道は遠く、夜になって、{name}は少しこわくなりました。そこへ友だちが来て、明かりをくれました。二人はいっしょに{aim}を見つけて、みんなで喜びました。"
    ask = rng.choice(["{}のお話をしてください。", "{}の話を聞かせて。", "{}の短いお話をお願いします。"])
    return say(c, ask.format(hero), text, "story", [name])
