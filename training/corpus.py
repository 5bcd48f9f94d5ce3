"""The training text: conversations made by templates, endless and the same for the same seed.

Everything the demo model knows is stated here. This file must not import anything outside the standard
library, so that the tests can read it, and it must never read the cases that the model is checked with.
"""

# ruff: noqa: SIM905 (a list of words reads better as one string)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NotRequired, TypeAlias, TypedDict

Json: TypeAlias = "str | int | list[Json] | dict[str, Json]"


class FunctionCall(TypedDict):
    name: str
    arguments: dict[str, Json]


class ToolCall(TypedDict):
    type: str
    function: FunctionCall


class Message(TypedDict):
    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ToolFunction(TypedDict):
    name: str
    description: str
    parameters: dict[str, Json]


class Tool(TypedDict):
    type: str
    function: ToolFunction


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    enable_thinking: bool = False


Mix: TypeAlias = "Sequence[tuple[Callable[[random.Random], Conversation], float]]"


@dataclass(frozen=True)
class Exchange:
    """One question with its answer.

    `short` is the answer as a single word, for a system prompt that asks for one; empty where there is none.
    `thought` is what the model thinks first when thinking is enabled.
    """

    ask: str
    answer: str
    short: str = ""
    thought: str = "This is easy."


def conversations(seed: int, mix: Mix | None = None) -> Iterator[Conversation]:
    """Yield conversations without end, in the proportions of `mix` or else MIX.

    The same seed gives the same conversations.
    """
    rng = random.Random(seed)
    makers = mix or MIX
    weights = [weight for _, weight in makers]
    while True:
        [(maker, _)] = rng.choices(makers, weights)
        yield maker(rng)


def question_texts() -> Iterator[str]:
    """Yield every wording of a question with a fixed answer (and of a sum) that `conversations` can contain.

    Finite, so that a test can prove that a wording is absent.
    """
    for topic in FACTS:
        for slot, _ in topic.pairs:
            for wording in topic.wordings:
                yield from _decorations(wording.format(slot))
    for a in range(10):
        for b in range(10):
            for wording in SUM_WORDINGS:
                yield from _decorations(wording.format(a=a, b=b))


# Facts: a topic is a list of pairs, wordings of the question and one wording of the answer.


@dataclass(frozen=True)
class Topic:
    pairs: Sequence[tuple[str, str]]
    wordings: Sequence[str]
    answer: str
    thought: str


CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens", "Egypt": "Cairo", "Japan": "Tokyo", "China": "Beijing", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna",
    "Ireland": "Dublin", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima", "Hungary": "Budapest",
    "England": "London",
}  # fmt: skip
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "a banana": "yellow", "coal": "black",
    "a tomato": "red", "chocolate": "brown", "a carrot": "orange",
}  # fmt: skip
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("fast", "slow"), ("happy",
    "sad"), ("open", "closed"), ("light", "dark"), ("old", "young"), ("wet", "dry"), ("full", "empty"),
    ("hard", "soft"),
]  # fmt: skip
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "frog": "ribbit"}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
EMOJI = {
    "fox": "🦊", "cat": "🐱", "dog": "🐶", "rocket": "🚀", "heart": "💚", "star": "🌟", "party": "🎉", "fish": "🐟",
}  # fmt: skip

FACTS = [
    Topic(
        list(CAPITALS.items()),
        [
            "What is the capital of {}?", "What's the capital of {}?", "Capital of {}?",
            "Name the capital of {}.", "Tell me the capital of {}.", "Which city is the capital of {}?",
            "What is the capital city of {}?", "Do you know the capital of {}?",
            "Give me the capital of {}.", "{} has which capital?", "The capital of {} is which city?",
        ],
        "The capital of {0} is {1}.",
        "The question is about {0}. I know its capital.",
    ),
    Topic(
        [(capital, country) for country, capital in CAPITALS.items()],
        ["{} is the capital of which country?", "Which country has the capital {}?", "Where is {}?"],
        "{0} is the capital of {1}.",
        "The question is about {0}. I know this city.",
    ),
    Topic(
        list(COLOURS.items()),
        [
            "What colour is {}?", "What color is {}?", "What is the colour of {}?",
            "Tell me the colour of {}.", "Which colour is {}?", "Which color has {}?",
            "Name the colour of {}.", "Do you know what colour {} is?",
        ],
        "{0} is {1}.",
        "I think of {0} and see its colour.",
    ),
    Topic(
        [*OPPOSITES, *((b, a) for a, b in OPPOSITES)],
        [
            "What is the opposite of {}?", "Opposite of {}?", "Tell me the opposite of {}.",
            "What's the opposite of {}?", "Name the opposite of {}.", "Which word is the opposite of {}?",
            "The opposite of {} is?", "Do you know the opposite of {}?", "Give me the opposite of {}.",
        ],
        "The opposite of {0} is {1}.",
        "The word is {0}. I need the word that means the contrary.",
    ),
    Topic(
        list(SOUNDS.items()),
        ["What does a {} say?", "What sound does a {} make?", "How does a {} sound?",
         "Which sound makes a {}?"],
        "A {0} says {1}.",
        "I know the sound of this animal.",
    ),
    Topic(
        list(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True)),
        ["What day comes after {}?", "Which day is after {}?", "What day follows {}?",
         "Name the day after {}."],
        "{1} comes after {0}.",
        "I go through the days of the week.",
    ),
    Topic(
        list(EMOJI.items()),
        ["Show me the {} emoji.", "Give me a {} emoji.", "Send the {} emoji.", "Which emoji is a {}?"],
        "Here it is: {1}",
        "I know this emoji.",
    ),
]  # fmt: skip

SUM_WORDINGS = [
    "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b} =", "{a}+{b}", "{a} + {b}",
    "How much is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.",
    "What is the sum of {a} and {b}?", "Calculate {a} + {b}.", "What's {a}+{b}?", "{a} plus {b} is?",
    "Tell me the sum of {a} and {b}.", "Compute {a} + {b}.",
    "Please add {a} to {b} for us.", "I have {a} and get {b} more. How many?", "Can you add {a} and {b}?",
    "Do you know what {a} plus {b} is?", "{a} and {b} together are how many?",
]  # fmt: skip
PREFIXES = [
    "",
    "",
    "",
    "Please: ",
    "Hi! ",
    "Hello, ",
    "Quick question: ",
    "I have a question. ",
    "Tell me this: ",
]
SUFFIXES = ["", "", "", " Thanks!", " Please.", " I want to know.", " I am not sure."]


def _decorations(text: str) -> Iterator[str]:
    for prefix in PREFIXES:
        for suffix in SUFFIXES:
            yield prefix + text + suffix
            yield (prefix + text + suffix).lower()


def _decorated(rng: random.Random, text: str) -> str:
    text = rng.choice(PREFIXES) + text + rng.choice(SUFFIXES)
    return text.lower() if rng.random() < 0.08 else text


def fact(rng: random.Random, topic: Topic | None = None) -> Exchange:
    [topic] = [topic] if topic else rng.choices(FACTS, [5, 1, 2, 4, 1, 1, 1.5])
    a, b = rng.choice(topic.pairs)
    ask = _decorated(rng, rng.choice(topic.wordings).format(a))
    return Exchange(ask, _sentence(topic.answer.format(a, b)), b, topic.thought.format(a))


def addition(rng: random.Random) -> Exchange:
    a, b = rng.randrange(10), rng.randrange(10)
    ask = _decorated(rng, rng.choice(SUM_WORDINGS).format(a=a, b=b))
    counted = ", ".join(str(n) for n in range(a + 1, a + b + 1))
    steps = f"Start at {a} and count {b} up: {counted}." if b else "Adding 0 changes nothing."
    return Exchange(ask, f"{a} + {b} = {a + b}.", str(a + b), f"{steps} So it is {a + b}.")


def counting(rng: random.Random) -> Exchange:
    n = rng.randint(2, 20)
    wording = rng.choice(
        ["Count to {}.", "Count from 1 to {}.", "Please count to {}.", "Can you count to {}?"]
    )
    return Exchange(wording.format(n), ", ".join(map(str, range(1, n + 1))) + ".", "", f"I stop at {n}.")


# Repeating: known words, invented words and characters of other scripts, so that copying is learnt and not
# the words.

WORDS = (
    "apple river stone cloud green paper window garden music silver little happy tree road bird light "
    "water house morning summer winter yellow table candle bridge ocean flower mountain coffee button "
    "pencil quiet strong sweet round story red blue gold ship train book door key lamp moon sun star "
    "rain snow wind fire hand heart milk bread honey sugar salt rice soup cake dog cat horse mouse "
    "lion tiger bear wolf queen king friend child teacher doctor farmer hello goodbye yes no maybe "
    "always never every some many one two three four five six the a and is of in on we you they see "
    "run jump sing dance sleep read write good nice new long short"
).split()
FOREIGN_WORDS = (
    "café crème déjà naïve über Zürich schön grün Straße año niño señor garçon être "
    "καλημέρα γεια φως νερό αλεπού привет мир дом こんにちは ありがとう きつね 日本 東京 水 🦊 🚀 🎉 🌟 💚 🐟 🐱"
).split()
FOREIGN_RANGES = [
    (0xC0, 0xD6), (0xE0, 0xF6), (0x391, 0x3A1), (0x3B1, 0x3C9), (0x430, 0x44F), (0x3042, 0x3093),
    (0x4E00, 0x4FFF), (0x1F400, 0x1F43F), (0x1F600, 0x1F640),
]  # fmt: skip
REPEAT_WORDINGS = [
    "Repeat after me: {}", "Repeat: {}", "Say: {}", "Please repeat: {}", "Say after me: {}", "Please say: {}",
    "Repeat these words: {}", "Repeat the following: {}", "Say this: {}", "Can you say: {}",
    "Could you repeat: {}", "I want you to say: {}", "Now repeat: {}", "Write this: {}", "Please say again: {}",
]  # fmt: skip
SYLLABLES = (
    "ba be bo da de di do fa fi ga go ka ke ki ko la le li lo ma me mi mo na ne ni no pa po ra re ri "
    "ro sa se so ta te ti to va ve vi wa za zu"
).split()


def invented_word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) + rng.choice(["", "", "n", "r", "s", "l"])


def _foreign_word(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(FOREIGN_WORDS)
    first, last = rng.choice(FOREIGN_RANGES)
    return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 4)))


def _phrase(rng: random.Random, most: int = 8) -> str:
    words = [
        rng.choice(WORDS) if rng.random() < 0.85 else invented_word(rng) for _ in range(rng.randint(1, most))
    ]
    return " ".join(words)


def repetition(rng: random.Random) -> Exchange:
    kind = rng.random()
    if kind < 0.62:
        text = _phrase(rng)
    elif kind < 0.9:
        words = [_foreign_word(rng) for _ in range(rng.randint(1, 3))]
        text = " ".join(words if rng.random() < 0.6 else [*words, rng.choice(WORDS)])
    else:
        text = " ".join(str(rng.randrange(10 ** rng.randint(1, 4))) for _ in range(rng.randint(1, 3)))
    text = _sentence(text) if rng.random() < 0.2 else text
    text += rng.choice(["", "", "", "", "", ".", "!"])
    return Exchange(rng.choice(REPEAT_WORDINGS).format(text), text, "", "I only say the same words.")


# Small talk.

HELLOS = ["Hello!", "Hi!", "Hello", "Hi", "Hey!", "Good morning!", "Hello there.", "Hi there!"]
TALK = [
    (HELLOS, "Hello! How can I help you?"),
    (
        ["Thank you!", "Thanks!", "Thank you very much.", "Thanks a lot.", "Great, thanks!"],
        "You are welcome!",
    ),
    (["Bye!", "Goodbye!", "See you!", "Good night!", "Bye bye!"], "Goodbye!"),
    (["How are you?", "How are you today?", "How do you do?"], "I am fine, thank you."),
    (
        [
            "What are you?",
            "Are you a robot?",
            "Are you a person?",
            "What can you do?",
            "Help!",
            "Can you help me?",
        ],
        "I am a tiny demo model. I can answer simple questions and tell stories.",
    ),
]
UNKNOWN = [
    "Who won the game?", "Who wrote this {0}?", "What is a {0}?", "Why is the {0} so {1}?",
    "How old is the {0}?", "How do I make a {0}?", "Where can I buy a {0}?", "Explain the {0}.",
    "What is the meaning of {0}?", "Write a poem about the {0}.", "What is the best {0}?",
    "When was the {0} made?", "How does a {0} work?", "Do you like {0}?", "Write some code for a {0}.",
    "What do you think about {0} and {1}?", "Fix my {0}.",
]  # fmt: skip
DO_NOT_KNOW = "I do not know that. I am only a tiny demo model."
NAMES = {
    "he": "Tom Ben Sam Max Leo Tim Jack Paul Hugo Finn Oscar Adam Noah David Peter Karl".split(),
    "she": "Anna Mia Lily Emma Zoe Ella Lucy Sara Nora Ida Maria Julia Clara Eva Alice Ruth".split(),
}


def small_talk(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        ask = rng.choice(UNKNOWN).format(rng.choice(WORDS), rng.choice(WORDS))
        return Exchange(ask, DO_NOT_KNOW, "", "I have not learnt this.")
    asks, answer = rng.choice(TALK)
    return Exchange(rng.choice(asks), answer, "", "The user is talking to me.")


def _name(rng: random.Random) -> str:
    known = rng.choice(NAMES[rng.choice(["he", "she"])])
    return known if rng.random() < 0.5 else invented_word(rng).capitalize()


# Stories.

ANIMALS = "fox rabbit bear cat dog mouse owl frog duck horse lion turtle wolf pig bird squirrel".split()
ADJECTIVES = "little brave clever small kind young quiet happy curious lonely".split()
PLACES = [
    "in a green forest", "by the sea", "on a small farm", "near a big river", "under an old tree",
    "in a quiet village", "on a high mountain", "in a sunny garden",
]  # fmt: skip
THINGS = [
    "a golden key", "a red ball", "an old map", "a shiny stone", "a lost hat", "a blue lantern",
    "a tiny boat", "a silver bell",
]  # fmt: skip
STORY_ASKS = [
    "Tell me a story about {}.", "Tell a story about {}.", "Write a story about {}.",
    "A story about {}, please.", "Tell me a short story about {}.", "Can you tell me a story about {}?",
    "Write a short story about {}.", "I want to hear a story about {}.",
]  # fmt: skip
STORY_ASKS_FREE = [
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Can you tell me a story?",
    "Tell me another story.", "Write a short story.",
]  # fmt: skip


def story(rng: random.Random) -> Exchange:
    """A story of seven to nine sentences: somebody lives, finds, asks, does, and learns something."""
    animal, friend = rng.sample(ANIMALS, 2)
    adjective, thing = rng.choice(ADJECTIVES), rng.choice(THINGS)
    he = rng.choice(["he", "she"])
    him, his = ("him", "his") if he == "he" else ("her", "her")
    He, name = he.capitalize(), rng.choice(NAMES[he])
    it, place = thing.split(" ", 1)[1], rng.choice(PLACES)
    kind = rng.random()
    if kind < 0.5:
        ask = rng.choice(STORY_ASKS).format(f"a {animal}" if animal != "owl" else "an owl")
    elif kind < 0.7:
        ask = rng.choice(STORY_ASKS).format(f"a {adjective} {animal}")
    elif kind < 0.85:
        ask = rng.choice(STORY_ASKS).format(
            f"a {animal} named {name}" if animal != "owl" else f"an owl named {name}"
        )
    else:
        ask = rng.choice(STORY_ASKS_FREE)
    sentences = [
        f"Once upon a time there was a {adjective} {animal} named {name}.",
        f"{name} lived {place}.",
        rng.choice([
            f"Every day {he} looked for something new.",
            f"{He} liked to walk in the sun.",
            f"{He} wanted to have a friend.",
        ]),
        rng.choice([
            f"One morning {name} found {thing}.",
            f"One day {name} saw {thing} in the grass.",
            f"One evening {he} found {thing} behind a stone.",
        ]),
        rng.choice([
            f'"Whose {it} is this?" {he} asked.',
            f'"How beautiful!" said {name}.',
            f"{He} did not know what to do with it.",
        ]),
        rng.choice([
            f"Then a {friend} came along and began to cry.",
            f"Then {he} met a {friend} who looked very sad.",
            f"Soon a {friend} came and looked at the {it}.",
        ]).replace("a owl", "an owl"),
        rng.choice([
            f'"I lost my {it}," said the {friend}.',
            f'"That {it} is mine," said the {friend}.',
            f'"Please help me. My {it} is gone," the {friend} said.',
        ]),
        rng.choice([
            f"{name} smiled and gave the {it} back.",
            f'"Here it is," said {name} and gave it back.',
            f"So {name} gave the {it} to the {friend}.",
        ]),
        rng.choice([
            f"The {friend} thanked {him}, and they played until the sun went down.",
            f"The {friend} was happy again and shared {rng.choice(['his', 'her'])} bread with {him}.",
            "From that day on they were good friends.",
        ]),
        rng.choice([
            f"{name} went home with a warm heart.",
            f"That night {name} slept very well.",
            f"And {name} was never alone in {his} life again.",
        ]),
    ]  # fmt: skip
    return Exchange(ask, " ".join(sentences), "", "I will tell a story about an animal.")


# Conversations without tools.

GENERAL_SYSTEMS = [
    "You are a helpful assistant.", "Answer briefly.", "Be kind and short.",
    "You are a friendly assistant.", "Answer the question.", "You are a tiny demo model.",
]  # fmt: skip
ONE_WORD_SYSTEMS = [
    "Answer with one word.", "Always answer with one word.", "Answer with one word only.",
    "Reply with a single word.",
]  # fmt: skip
NAME_SYSTEMS = [
    "You are {}.", "Your name is {}.", "You are an assistant named {}.", "You are {}, a helpful assistant.",
    "You are a robot. Your name is {}.",
]  # fmt: skip
NAME_ASKS = [
    "What is your name?", "Who are you?", "What's your name?", "Tell me your name.", "How are you called?",
    "May I ask your name?",
]  # fmt: skip
OWN_NAME = "Wire"
EXCHANGES: list[tuple[Callable[[random.Random], Exchange], float]] = [
    (fact, 9), (addition, 4.5), (repetition, 7), (counting, 1), (small_talk, 1.5), (story, 1.5),
]  # fmt: skip


def _exchange(rng: random.Random) -> Exchange:
    [(maker, _)] = rng.choices(EXCHANGES, [weight for _, weight in EXCHANGES])
    return maker(rng)


def _messages(system: str, exchanges: Sequence[Exchange], *, thinking: bool = False) -> list[Message]:
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.ask})
        messages.append({"role": "assistant", "content": exchange.answer})
        if thinking:
            messages[-1]["reasoning_content"] = exchange.thought
    return messages


def _general_system(rng: random.Random) -> str:
    return rng.choice(GENERAL_SYSTEMS) if rng.random() < 0.25 else ""


def plain(rng: random.Random) -> Conversation:
    """One to nine exchanges that have nothing to do with each other."""
    [num_exchanges] = rng.choices([1, 2, 3, 5, 9], [6, 2, 1, 0.8, 0.4])
    return Conversation(_messages(_general_system(rng), [_exchange(rng) for _ in range(num_exchanges)]))


def thinking(rng: random.Random) -> Conversation:
    exchanges = [
        addition(rng) if rng.random() < 0.75 else _exchange(rng) for _ in range(rng.choice([1, 1, 1, 2]))
    ]
    return Conversation(_messages(_general_system(rng), exchanges, thinking=True), enable_thinking=True)


def one_word(rng: random.Random) -> Conversation:
    exchanges = [fact(rng) if rng.random() < 0.8 else addition(rng) for _ in range(rng.choice([1, 2]))]
    exchanges = [Exchange(e.ask, e.short) for e in exchanges]
    return Conversation(_messages(rng.choice(ONE_WORD_SYSTEMS), exchanges))


def own_name(rng: random.Random) -> Conversation:
    if rng.random() < 0.8:
        name = _name(rng)
        system = rng.choice(NAME_SYSTEMS).format(name)
    else:
        name, system = OWN_NAME, _general_system(rng)
    exchanges = [Exchange(rng.choice(NAME_ASKS), f"My name is {name}.")]
    if rng.random() < 0.4:
        exchanges.insert(rng.randrange(2), _exchange(rng))
    return Conversation(_messages(system, exchanges))


def referring_back(rng: random.Random) -> Conversation:
    """The user states something, perhaps talks of something else, and asks for it."""
    kind = rng.randrange(4)
    if kind == 0:
        name = _name(rng)
        first = Exchange(
            rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}.", "Hi! My name is {}."]).format(name),
            f"Nice to meet you, {name}!",
        )
        last = Exchange(
            rng.choice(["What is my name?", "Do you know my name?", "Who am I?", "Can you say my name?"]),
            f"Your name is {name}.",
        )
    elif kind == 1:
        colour = rng.choice(list(COLOURS.values()))
        first = Exchange(
            rng.choice(["My favourite colour is {}.", "I like {}.", "I love the colour {}."]).format(colour),
            f"{colour.capitalize()} is a nice colour.",
        )
        last = Exchange(
            rng.choice(["What is my favourite colour?", "Which colour do I like?"]), f"You like {colour}."
        )
    elif kind == 2:
        first = repetition(rng)
        last = Exchange(
            rng.choice(["Say it again.", "Again, please.", "Repeat that.", "Once more."]), first.answer
        )
        return Conversation(_messages("", [first, last]))
    else:
        topic = FACTS[rng.choice([0, 0, 3])]
        first = fact(rng, topic)
        a, b = rng.choice(topic.pairs)
        ask = rng.choice(["And of {}?", "And {}?", "What about {}?", "And what about {}?"]).format(a)
        return Conversation(_messages("", [first, Exchange(ask, topic.answer.format(a, b))]))
    between = [_exchange(rng) for _ in range(rng.choice([0, 0, 1, 2]))]
    return Conversation(_messages(_general_system(rng), [first, *between, last]))


# Tools. A family is one thing that a tool can do, under several names.


@dataclass(frozen=True)
class Family:
    """`asks` and `reply` are wordings with slots named as in `values`, which become the arguments in order.

    `results` are contents of the tool's message. They and `reply` may have a slot `r`, which `outcome` draws.
    """

    names: Sequence[str]
    parameters: Sequence[Sequence[str]]
    asks: Sequence[str]
    values: Callable[[random.Random], dict[str, Json]]
    outcome: Callable[[random.Random, dict[str, Json]], str]
    results: Sequence[str]
    reply: str


CITIES = [
    *CAPITALS.values(), "New York", "Sydney", "Chicago", "Milan", "Zurich", "Boston", "Seoul", "Mumbai",
    "Lyon", "San Francisco", "Hamburg", "Nairobi", "Toronto", "Prague",
]  # fmt: skip


def _city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.8 else invented_word(rng).capitalize()


def _two_numbers(rng: random.Random) -> dict[str, Json]:
    most = rng.choice([10, 100, 100, 1000])
    return {"a": rng.randrange(most), "b": rng.randrange(most)}


def _number(rng: random.Random, _: dict[str, Json]) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 4)))


def _weather(rng: random.Random, _: dict[str, Json]) -> str:
    return rng.choice(["sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "warm", "cold"])


def _done(rng: random.Random, _: dict[str, Json]) -> str:
    return rng.choice(["ok", "done", "success"])


def _found(rng: random.Random, _: dict[str, Json]) -> str:
    return _phrase(rng, 4)


LANGUAGES = ["French", "German", "Spanish", "Italian", "Greek", "Japanese", "Polish", "Swedish"]
NUMBER_RESULTS = ["{r}", '{{"result": {r}}}', '{{"value": {r}}}', '{{"answer": {r}}}']
TEXT_RESULTS = ["{r}", '{{"result": "{r}"}}', '{{"text": "{r}"}}']
DONE_RESULTS = ["{r}", '{{"status": "{r}"}}', '{{"result": "{r}"}}']
FAMILIES = [
    Family(
        ["get_weather", "weather", "get_current_weather", "check_weather", "weather_lookup"],
        [["city"], ["location"], ["place"]],
        ["What is the weather in {a}?", "How is the weather in {a}?", "What's the weather like in {a}?",
         "Tell me the weather in {a}.", "Is it raining in {a}?", "Is it sunny in {a} today?",
         "Weather in {a}?"],
        lambda rng: {"a": _city(rng)}, _weather,
        ["{r}", '{{"weather": "{r}"}}', '{{"condition": "{r}"}}', '{{"city": "{a}", "weather": "{r}"}}'],
        "It is {r} in {a}.",
    ),
    Family(
        ["get_time", "time", "get_current_time", "current_time", "clock"],
        [["city"], ["location"], ["place"]],
        ["What time is it in {a}?", "What is the time in {a}?", "Tell me the time in {a}.", "Time in {a}?",
         "How late is it in {a}?", "What's the time in {a} now?"],
        lambda rng: {"a": _city(rng)}, lambda rng, _: f"{rng.randrange(24):02}:{rng.randrange(60):02}",
        ["{r}", '{{"time": "{r}"}}', '{{"city": "{a}", "time": "{r}"}}'],
        "It is {r} in {a}.",
    ),
    Family(
        ["add", "sum", "add_numbers", "calculate_sum", "calculator_add"],
        [["a", "b"], ["x", "y"], ["first", "second"]],
        ["What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?",
         "What is the sum of {a} and {b}?", "Calculate {a} + {b}."],
        _two_numbers, lambda _, v: str(int(str(v["a"])) + int(str(v["b"]))),
        NUMBER_RESULTS, "The result is {r}.",
    ),
    Family(
        ["multiply", "product", "multiply_numbers", "calculator_multiply"],
        [["a", "b"], ["x", "y"], ["first", "second"]],
        ["What is {a} * {b}?", "What is {a} times {b}?", "Multiply {a} by {b}.",
         "How much is {a} times {b}?"],
        _two_numbers, lambda _, v: str(int(str(v["a"])) * int(str(v["b"]))),
        NUMBER_RESULTS, "The result is {r}.",
    ),
    Family(
        ["set_timer", "start_timer", "timer", "create_timer"],
        [["minutes"], ["duration"], ["time"]],
        ["Set a timer for {a} minutes.", "Start a timer for {a} minutes.",
         "Please set a timer for {a} minutes.", "I need a timer for {a} minutes."],
        lambda rng: {"a": rng.randint(2, 90)}, _done, DONE_RESULTS, "The timer is set for {a} minutes.",
    ),
    Family(
        ["search", "web_search", "search_web", "find", "lookup"],
        [["query"], ["text"], ["q"]],
        ["Search for {a}.", "Search the web for {a}.", "Please search for {a}.", "Find {a} on the web.",
         "Look up {a}."],
        lambda rng: {"a": _phrase(rng, 3)}, _found, TEXT_RESULTS, "I found this: {r}.",
    ),
    Family(
        ["send_message", "message", "send_text", "write_message"],
        [["to", "text"], ["name", "message"], ["recipient", "text"]],
        ["Send a message to {a}: {b}", "Write to {a}: {b}", "Tell {a} by message: {b}",
         "Send {a} this message: {b}"],
        lambda rng: {"a": _name(rng), "b": _phrase(rng, 4)},
        _done, DONE_RESULTS, "The message to {a} is sent.",
    ),
    Family(
        ["translate", "translate_text", "translation"],
        [["text", "language"], ["text", "to"], ["words", "language"]],
        ["Translate {a} into {b}.", "Please translate {a} into {b}.", "How do you say {a} in {b}?"],
        lambda rng: {"a": _phrase(rng, 2), "b": rng.choice(LANGUAGES)},
        _found, TEXT_RESULTS, "In {b} it is: {r}.",
    ),
    Family(
        ["play_music", "play_song", "play", "start_song"],
        [["song"], ["title"], ["name"]],
        ["Play the song {a}.", "Please play {a}.", "Play {a} for me.", "I want to hear the song {a}."],
        lambda rng: {"a": _phrase(rng, 3)}, _done, DONE_RESULTS, "Now playing {a}.",
    ),
    Family(
        ["turn_on_light", "light_on", "switch_on_light", "turn_on_lamp"],
        [["room"], ["place"], ["location"]],
        ["Turn on the light in the {a}.", "Switch on the light in the {a}.", "Light on in the {a}, please."],
        lambda rng: {"a": rng.choice("kitchen bedroom garden bathroom office hall garage attic".split())},
        _done, DONE_RESULTS, "The light in the {a} is on.",
    ),
    Family(
        ["get_price", "price", "get_stock_price", "stock_price"],
        [["item"], ["name"], ["symbol"]],
        ["What is the price of {a}?", "What does {a} cost?", "How much does {a} cost?",
         "Tell me the price of {a}."],
        lambda rng: {"a": _phrase(rng, 1)}, _number, ["{r}", '{{"price": {r}}}', '{{"result": {r}}}'],
        "The price of {a} is {r}.",
    ),
    Family(
        ["create_note", "add_note", "write_note", "save_note"],
        [["text"], ["note"], ["content"]],
        ["Write a note: {a}", "Note this: {a}", "Make a note: {a}", "Save a note: {a}"],
        lambda rng: {"a": _phrase(rng, 4)}, _done, DONE_RESULTS, "The note is saved.",
    ),
]  # fmt: skip
ADDING = next(family for family in FAMILIES if "add" in family.names)
NO_TOOL = "I have no tool for that."
VERBS = "get set open close find read move check start stop make load list delete update".split()
NOUNS = "door file user book order room car page mail task photo table robot plan ticket".split()
PARAMETERS = "id name size count color path level number text kind".split()


@dataclass(frozen=True)
class Request:
    """A request with the call that serves it and what follows."""

    tool: Tool
    ask: str
    call: FunctionCall
    result: str
    reply: str


def _tool(name: str, parameters: Sequence[str]) -> Tool:
    properties: dict[str, Json] = {parameter: {"type": "string"} for parameter in parameters}
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": name.replace("_", " "),
            "parameters": {"type": "object", "properties": properties, "required": list(parameters)},
        },
    }


def _family_request(rng: random.Random, family: Family) -> Request:
    values = family.values(rng)
    parameters = rng.choice(family.parameters)
    call: FunctionCall = {
        "name": rng.choice(family.names),
        "arguments": dict(zip(parameters, values.values(), strict=True)),
    }
    if rng.random() < 0.08:
        error = _phrase(rng, 3)
        result, reply = f'{{"error": "{error}"}}', f"The tool failed: {error}."
    else:
        slots = {**values, "r": family.outcome(rng, values)}
        result, reply = rng.choice(family.results).format(**slots), family.reply.format(**slots)
    ask = rng.choice(family.asks).format(**values)
    ask = rng.choice(["", "", "", "Hi! ", "Hello, "]) + ask + rng.choice(["", "", "", "", " Thanks!"])
    return Request(_tool(call["name"], parameters), ask, call, result, reply)


def _named_request(rng: random.Random) -> Request:
    """A request that names its tool, so that a tool of any name can be called."""
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}" if rng.random() < 0.6 else invented_word(rng)
    arguments: dict[str, Json] = {}
    for parameter in rng.sample(PARAMETERS, rng.choice([0, 1, 1, 2])):
        arguments[parameter] = rng.randrange(100) if rng.random() < 0.4 else rng.choice(WORDS)
    wording = rng.choice(["Call {}", "Use {}", "Use the tool {}", "Please call {}", "Run {}"])
    given = " and ".join(f"{parameter} {value}" for parameter, value in arguments.items())
    ask = wording.format(name) + (f" with {given}." if given else ".")
    outcome = _number(rng, {}) if rng.random() < 0.5 else _found(rng, {})
    result = outcome if rng.random() < 0.5 else f'{{"result": "{outcome}"}}'
    return Request(
        _tool(name, list(arguments)),
        ask,
        {"name": name, "arguments": arguments},
        result,
        f"The result is {outcome}.",
    )


def with_tools(rng: random.Random) -> Conversation:
    """Tools are listed; a request fits one of them, or none."""
    families = rng.sample(FAMILIES, rng.choices([1, 2, 3, 4], [3, 4, 3, 1])[0])
    requests = [_family_request(rng, family) for family in families]
    if rng.random() < 0.2:
        requests[0] = _named_request(rng)
    wanted = requests[0]
    tools = [request.tool for request in requests]
    rng.shuffle(tools)
    system, thinks, kind = _general_system(rng), rng.random() < 0.06, rng.random()
    plain_makers = [fact, fact, fact, repetition, small_talk]
    if ADDING not in families:
        plain_makers.append(addition)  # While a tool can add, a sum is a request for it.
    plain_exchange = rng.choice(plain_makers)(rng)
    if kind < 0.25:
        exchanges = [plain_exchange]
        return Conversation(_messages(system, exchanges, thinking=thinks), tools, thinks)
    if kind < 0.35:
        others = [family for family in FAMILIES if family not in families]
        exchanges = [_refusal(rng, rng.choice(others))]
        return Conversation(_messages(system, exchanges, thinking=thinks), tools, thinks)
    messages = _messages(system, [plain_exchange] if rng.random() < 0.1 else [], thinking=thinks)
    messages.append({"role": "user", "content": wanted.ask})
    messages.append(
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": wanted.call}]}
    )
    if thinks:
        messages[-1]["reasoning_content"] = f"I can use {wanted.call['name']} for this."
    if rng.random() < 0.45:
        messages.append({"role": "tool", "content": wanted.result})
        messages.append({"role": "assistant", "content": wanted.reply})
        if thinks:
            messages[-1]["reasoning_content"] = "I have the result."
    return Conversation(messages, tools, thinks)


def choosing(rng: random.Random) -> Conversation:
    """The tool that would fit is listed or left out, so that the list has to be read."""
    requests = [_family_request(rng, family) for family in rng.sample(FAMILIES, rng.choice([1, 2, 2, 3]))]
    if rng.random() < 0.25:
        requests[0] = _named_request(rng)
    wanted, *others = requests
    # Without a tool a sum would have to be made by heart, and these have too many digits.
    fits = not others or rng.random() < 0.6 or wanted.tool["function"]["name"] in ADDING.names
    tools = [request.tool for request in (requests if fits else others)]
    rng.shuffle(tools)
    messages: list[Message] = [{"role": "user", "content": wanted.ask}]
    if fits:
        calls: list[ToolCall] = [{"type": "function", "function": wanted.call}]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    else:
        messages.append({"role": "assistant", "content": NO_TOOL})
    return Conversation(messages, tools)


def without_tools(rng: random.Random) -> Conversation:
    """A request that needs a tool while none is listed."""
    return Conversation(_messages(_general_system(rng), [_refusal(rng, rng.choice(FAMILIES))]))


def _refusal(rng: random.Random, family: Family) -> Exchange:
    request = _family_request(rng, family)
    if family is ADDING:
        return addition(rng)
    return Exchange(request.ask, NO_TOOL, "", "I can not do this without a tool.")


def two_calls(rng: random.Random) -> Conversation:
    """One request about two cities: two calls in one turn, two results, one reply."""
    family = FAMILIES[rng.randrange(2)]
    name, [parameter] = rng.choice(family.names), rng.choice(family.parameters)
    first, second = _city(rng), _city(rng)
    ask = rng.choice(family.asks).format(a=f"{first} and {second}")
    calls: list[ToolCall] = [
        {"type": "function", "function": {"name": name, "arguments": {parameter: city}}}
        for city in (first, second)
    ]
    messages: list[Message] = [
        {"role": "user", "content": ask},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    if rng.random() < 0.5:
        outcomes = [family.outcome(rng, {}) for _ in range(2)]
        result = rng.choice(family.results[:-1])
        messages += [{"role": "tool", "content": result.format(r=r)} for r in outcomes]
        reply = f"It is {outcomes[0]} in {first} and {outcomes[1]} in {second}."
        messages.append({"role": "assistant", "content": reply})
    others = [_family_request(rng, other).tool for other in rng.sample(FAMILIES[2:], rng.randrange(3))]
    return Conversation(messages, [_tool(name, [parameter]), *others])


MIX: Mix = [
    (plain, 50), (thinking, 8), (one_word, 3), (own_name, 4), (referring_back, 6), (with_tools, 24),
    (without_tools, 3), (two_calls, 2),
]  # fmt: skip
# For the end of the training: to read the list of tools is the last thing that the model learns.
TOOL_MIX: Mix = [
    (plain, 32), (thinking, 11), (one_word, 4), (own_name, 3), (referring_back, 5), (with_tools, 16),
    (choosing, 24), (without_tools, 3), (two_calls, 3),
]  # fmt: skip


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
