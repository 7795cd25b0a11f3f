"""Words and names that the generators draw from, and the split into training and held-out values."""

import zlib

CITIES = """Oslo Rome Paris Berlin Tokyo London Madrid Lisbon Vienna Prague Warsaw Athens Dublin Helsinki Stockholm Copenhagen
Brussels Amsterdam Budapest Bucharest Sofia Zagreb Belgrade Kyiv Riga Tallinn Vilnius Reykjavik Bern Zurich Geneva Milan Naples
Venice Florence Turin Barcelona Seville Valencia Porto Lyon Marseille Nice Toulouse Hamburg Munich Cologne Frankfurt Dresden
Leipzig Krakow Gdansk Istanbul Ankara Cairo Tunis Rabat Lagos Accra Nairobi Kampala Lusaka Harare Pretoria Johannesburg Durban
Dubai Doha Riyadh Muscat Tehran Baghdad Amman Beirut Jerusalem Karachi Lahore Delhi Mumbai Chennai Kolkata Bangalore Colombo
Dhaka Kathmandu Yangon Bangkok Hanoi Manila Jakarta Singapore Perth Sydney Melbourne Brisbane Adelaide Auckland Wellington
Beijing Shanghai Shenzhen Guangzhou Taipei Seoul Busan Osaka Kyoto Nagoya Sapporo Toronto Montreal Vancouver Ottawa Calgary
Boston Chicago Seattle Denver Dallas Houston Austin Miami Atlanta Phoenix Portland Detroit Philadelphia Lima Quito Bogota
Caracas Santiago Montevideo Havana Panama Guatemala Kingston Brasilia Salvador Recife""".split() + [
    "New York", "Los Angeles", "San Francisco", "San Diego", "Las Vegas", "Buenos Aires", "Rio de Janeiro", "Sao Paulo",
    "Mexico City", "Hong Kong", "Kuala Lumpur", "Cape Town", "Addis Ababa", "Abu Dhabi", "Tel Aviv", "New Delhi", "Den Haag",
    "St. Petersburg", "Salt Lake City", "Santa Fe",
]
CITIES_ZH = "北京 上海 广州 深圳 南京 杭州 成都 重庆 武汉 西安 天津 苏州 香港 台北 东京 伦敦 巴黎 纽约 柏林 罗马".split()
CITIES_JA = "東京 大阪 京都 札幌 名古屋 福岡 仙台 広島 神戸 横浜 金沢 奈良 ロンドン パリ ローマ ベルリン".split()
NAMES = """Ana Ben Carla David Emma Felix Greta Hugo Ida Jonas Kira Leo Mia Nils Olga Paul Rosa Sam Tina Udo Vera Willi Yara Zoe
Alice Bob Clara Daniel Elena Frank Gina Henry Ines Jack Karen Liam Maria Noah Olivia Peter Quentin Rita Simon Theo Ursula
Victor Wendy Xavier Yuki Zara Ahmed Aisha Akira Amir Anya Arjun Chen Chloe Diego Dmitri Fatima Hana Hiro Ivan Jin Juan Kofi
Lars Lena Lucia Luca Marco Mei Nadia Omar Pablo Priya Rahul Ravi Sakura Sara Sofia Tariq Tom Wei Yusuf""".split()
NOUNS = """apple bridge candle door engine field garden house island jacket kettle lamp mirror needle orange pencil queen river
stone table umbrella village window yard zebra anchor basket cloud desk feather glass hammer ladder market nest ocean paper
rocket shelf train valley wagon bottle camera drum fence guitar helmet kitchen lemon mountain notebook oven piano robot ship
tower violin whale box printer plant song ticket report order room light heater pump""".split()
ADJECTIVES = """red blue green small large old new quick slow warm cold bright dark quiet loud soft hard sweet early late simple
strange famous modern ancient cheap local best common rare wild empty full round square heavy""".split()
VERBS = """open close start stop move paint lift count clean water print send load check feed turn build pack rent book order
mark scan sort lock unlock cook wash fold plan track join split copy save share update create delete""".split()
TOPICS = """volcanoes penguins glaciers jazz chess bread coffee tea bicycles comets whales tides castles Vikings honey bees
sourdough origami telescopes submarines lighthouses windmills dinosaurs mushrooms orchids tulips robots poetry opera football
tennis sailing climbing batteries magnets lasers clocks maps coins stamps kites pottery cheese chocolate rice noodles soup
marathons painting sculpture photography astronomy geology botany history Rust Linux databases compilers""".split()

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w x y z".split()
_VOWELS = "a e i o u ai ea ia io ou".split()
_CODAS = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "x", "th", "ck"]


def held(text):
    """True for the eighth of all texts that training never sees; the same on every machine."""
    return zlib.crc32(text.encode()) % 8 == 0


def made_up(rng):
    """A word nobody has seen, so that copying is learned and not a list."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice([1, 2, 2, 3])))
