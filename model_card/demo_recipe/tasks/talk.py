"""Small talk for the demo checkpoint, and system prompts that change the answer.

What people say first to a chat model is composed of a greeting and a request, so that whole sentences can be held out.
A system prompt may give the model a name, or say how an answer is to look. Plain strings only; knows nothing of tokens
or models.
"""

import random

from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.words import NAMES

ABOUT = (
    "I am a small demo of Small 4. I can do arithmetic, read small programs, call tools and look at simple pictures."
)
GREETINGS = (
    "Hello", "Hi", "Hi there", "Hey", "Good morning", "Good evening", "Good afternoon", "Hello there", "Bonjour",
    "Greetings", "Hello again",
)  # fmt: skip
# Each topic: what the user may say, the answer, and the thought that leads to it.
TOPICS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "greeting": (("",), "Hello! Ask me a sum, or show me a picture.", "A greeting."),
    "who": (
        (
            "Who are you?", "What are you?", "Tell me about yourself.", "What model are you?", "Are you an AI?",
            "Introduce yourself.",
            "Which model is this?", "Are you a robot?", "Who am I talking to?", "What is this?",
        ),
        ABOUT,
        "They ask who I am.",
    ),
    "help": (
        (
            "What can you do?", "Help", "Can you help me?", "How can you help me?", "What do you know?",
            "What should I ask you?",
            "What are you good at?", "Help me, please.", "How do I use you?", "What can I ask?",
        ),
        "Ask me to compute, to spell a word, to read a small program, to find something in a text, or to describe a "
        "picture.",
        "They ask what I can do.",
    ),
    "thanks": (
        ("Thanks", "Thank you", "Thanks a lot!", "Great, thanks.", "Perfect", "Well done!", "Good job", "Nice!", "Cool",
        "Thank you very much."),
        "You are welcome!",
        "They thank me.",
    ),
    "goodbye": (("Bye", "Goodbye", "See you", "See you later!", "Good night", "Bye bye", "I have to go."), "Goodbye!",
    "They say goodbye."),
    "how": (
        ("How are you?", "How are you doing?", "How is it going?", "Are you well?", "How do you do?",
        "How are you today?"),
        "I am well, thank you.",
        "They ask how I am.",
    ),
    "beyond": (
        (
            "Write a poem.", "Tell me a joke.", "What is the capital of "
                "France?", "Who wrote Hamlet?", "Translate this into French.",
            "Write a Python function.", "Why is the sky blue?", "Tell me a story.", "Summarise this text.",
            "What is the meaning of life?", "Who is the president?", "What day is it?", "Recommend a book.",
        ),
        "I do not know that. I am a very small demo.",
        "That is beyond me.",
    ),
}  # fmt: skip
SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Be concise.", "Answer the question.",
    "You are Small 4.",
    "Help the user.",
)  # fmt: skip
# System prompts that change how every answer looks.
STYLES = {
    "Answer in a full sentence.": "The answer is {}.",
    "Begin every answer with Sure.": "Sure. {}",
    "End every answer with Done.": "{} Done.",
    "Put the answer in brackets.": "({})",
}
ASK_NAME = (
    "What is your name?",
    "What's your name?",
    "What are you called?",
    "Tell me your name.",
    "Do you have a name?",
    "Your name, please.",
)


def draw(rng: random.Random, easy: bool = False) -> Item:
    chance = rng.random()
    return _named(rng) if chance < 0.25 else _styled(rng) if chance < 0.5 else _topic(rng)


def style(answer: str, system: str | None) -> str:
    """The answer as this system prompt wants it."""
    return STYLES[system].format(answer) if system in STYLES else answer


def _topic(rng: random.Random) -> Item:
    topic = rng.choice(list(TOPICS))
    says, answer, thought = TOPICS[topic]
    request = rng.choice(says)
    greeting = rng.choice(GREETINGS) if not request or rng.random() < 0.4 else ""
    greeting += (
        rng.choice(("!", ".", ",", "")) if greeting and request else rng.choice(("!", ".", "")) if greeting else ""
    )
    text = f"{greeting} {request}".strip()
    text = text.lower() if rng.random() < 0.2 else text
    alone = not greeting or not request  # the bare phrases are all there is to learn from
    return Item(topic, text.lower(), question_and_answer(text, answer, thought), answer, never_held_out=alone)


def _named(rng: random.Random) -> Item:
    name, question = rng.choice(NAMES), rng.choice(ASK_NAME)
    system = rng.choice(("Your name is {}.", "You are {}.", "You are called {}.", "Call yourself {}.")).format(name)
    answer = f"My name is {name}."
    turns = question_and_answer(question, answer, f"I am {name}.")
    return Item("name from the system prompt", (system, question), turns, answer, system)


def _styled(rng: random.Random) -> Item:
    system = rng.choice(list(STYLES))
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    question = rng.choice(("What is {} + {}?", "How much is {} plus {}?", "{}+{}", "Add {} and {}.")).format(a, b)
    answer = style(str(a + b), system)
    turns = question_and_answer(question, answer, f"{a}+{b}\n{a}+{b}={a + b}\n{a + b}")
    return Item("answer as the system prompt says", (system, question), turns, answer, system)
