"""Small talk in wider wording: the topics of `talk`, begun in more ways. Plain strings only; knows nothing of tokens or
models.
"""

import random

from model_card.demo_recipe.tasks import arithmetic, talk
from model_card.demo_recipe.tasks.arithmetic import Problem
from model_card.demo_recipe.tasks.item import Item, question_and_answer
from model_card.demo_recipe.tasks.reworded import nouns, sums
from model_card.demo_recipe.tasks.reworded.grammar import Grammar, typed

GRAMMAR = Grammar({
    "hello": ("hello", "hi", "hey", "good morning", "good evening", "yo", "hi there", "hello there", "morning", "evening", "hey you", "greetings", "hi demo", "hello model", "~howdy", "~hallo"),
    "greeting": ("{hello}", "{hello}!", "{hello}, nice to see you", "{hello}, i am {name}", "{hello} from {name}", "{hello}, {name} here", "{hello}, are you there?", "anybody here?", "{hello} again", "{hello}, good to meet you",
        "pleased to meet you", "{hello} friend", "welcome", "test", "is this on?", "~{hello}, let us start", "~salutations"),
    "who": ("who is this?", "who are you really?", "what are you called and what are you?", "what kind of model are you?", "what kind of thing are you?", "are you a person?", "are you human?", "are you a chatbot?", "are you a language model?",
        "say something about yourself", "describe yourself", "which AI are you?", "what is your purpose?", "who made this and what is it?", "am i talking to a machine?", "am i speaking to a person?", "what program is this?", "tell me who you are",
        "can you introduce yourself?", "so who are you?", "i do not know you. who are you?", "is there a human behind this?", "~with whom do i have the pleasure?", "~what is on the other side of this chat?"),
    "help": ("what do you do?", "what are you able to do?", "what can i do here?", "what are your skills?", "how do you work?", "what should i type?", "give me some examples of what you can do", "which questions can you answer?", "what tasks can you do?",
        "i need help", "please help me", "how does this work?", "what is possible here?", "tell me what you can do", "list what you can do", "show me what you can do", "can you do anything useful?", "what are your abilities?", "what kind of questions do you take?",
        "explain what you can do", "how can i use this?", "~what is in your bag of tricks?", "~where do i begin with you?"),
    "thanks": ("thank you so much", "thanks for your help", "thank you for that", "many thanks", "that helped", "that was helpful", "thanks, that is right", "very good", "excellent", "great", "great work", "awesome", "wonderful", "super", "thx", "ty", "you are great",
        "that is correct, thank you", "good answer", "nice work", "nice one", "brilliant", "i am grateful", "thanks again", "~much obliged", "~you did well"),
    "goodbye": ("goodbye for now", "bye for now", "see you soon", "see you next time", "i am leaving", "i must go now", "have a nice day", "have a good evening", "take care", "until tomorrow", "talk to you later", "i am done for today", "that is all, bye",
        "so long", "good night and bye", "bye, {name} out", "farewell", "i have to leave now", "ciao", "~time to sleep, bye", "~catch you later"),
    "how": ("how are things?", "how is everything?", "how is your day?", "how was your day?", "are you ok?", "are you doing well?", "how do you feel?", "how do you feel today?", "what's up?", "everything fine?", "all good?", "how's life?", "how's it going?", "you ok?",
        "how have you been?", "is everything alright with you?", "did you sleep well?", "~feeling good today?", "~how goes it?"),
    "person": ("president", "king", "queen", "author of this book", "best singer", "inventor of the phone", "boss", "first man on the moon", "mayor of {city}", "~richest woman"),
    "city": ("Paris", "Berlin", "Madrid", "Cairo", "Peru", "Spain", "Japan", "Italy", "Kenya", "Canada", "Norway", "India", "~Brazil"),
    "work": ("a poem", "a story", "a letter", "a song", "a joke", "a text", "a report", "an email", "a speech", "a book review", "a program", "a function in Java", "~a novel"),
    "about": ("the sea", "love", "my cat", "the moon", "winter", "trees", "football", "history", "war", "school", "dragons", "space", "music", "birds", "~volcanoes"),
    "beyond": ("who is the {person}?", "who was the {person}?", "what is the capital of {city}?", "where is {city}?", "write {work}", "write me {work}", "write {work} about {about}", "write me {work} about {about}", "can you write {work} about {about}?",
        "tell me about {about}", "tell me {work} about {about}", "why is there {about}?", "what do you think of {about}?", "explain {about} to me", "who wrote {about}?", "who painted this?", "who invented the {thing}?", "what is the best {thing}?",
        "how do i cook {about}?", "when was {city} founded?", "what happened in 1789?", "how tall is the highest mountain?", "translate this into German", "translate hello into Spanish", "what does {thing} mean?", "what is love?", "sing {work}", "how do birds fly?",
        "why do we sleep?", "what is the weather?", "what time is it?", "what is the news?", "should i buy a {thing}?", "how do i fix my {thing}?", "summarize {about}", "who discovered {city}?", "who won the game?", "how many people live in {city}?",
        "is there life on Mars?", "what film should i watch?", "~compose {work} on {about}", "~when did {about} begin?", "~who built {city}?"),
    "name": ("what is your name?", "what's your name?", "your name?", "who are you?", "what do they call you?", "what do i call you?", "how are you called?", "what name do you have?", "tell me what you are called", "say your name", "may i ask your name?", "can you tell me your name?",
        "hello, what is your name?", "i am {other}. what is your name?", "what should i call you?", "under which name do you go?", "~by what name may i address you?", "~and your name would be?"),
})  # fmt: skip


def draw(rng: random.Random, easy: bool = False, unseen: bool = False) -> Item:
    """A topic, or a system prompt that gives a name or a form for answers."""
    chance = rng.random()
    if chance < 0.2:
        return _named(rng, unseen)
    return _styled(rng, unseen) if chance < 0.4 else _topic(rng, unseen)


def _topic(rng: random.Random, unseen: bool) -> Item:
    topic = rng.choice((*talk.TOPICS, "beyond"))
    slots = {"name": nouns.name(rng, unseen), "thing": nouns.things(rng, unseen).rstrip("s")}
    text = GRAMMAR.say(f"{{{topic}}}", rng, slots, unseen=unseen)
    if topic != "greeting" and rng.random() < 0.15:
        text = f"{GRAMMAR.say('{hello}', rng, {})}{rng.choice((', ', '! ', '. '))}{text}"
    if text[-1] not in "?!." and rng.random() < 0.4:
        text += rng.choice("!.")
    text = text.lower() if rng.random() < 0.2 else text.rstrip("?.") if rng.random() < 0.15 else text
    _, answer, thought = talk.TOPICS[topic]
    return Item(topic, ("reworded", text.lower()), question_and_answer(text, answer, thought), answer)


def _named(rng: random.Random, unseen: bool) -> Item:
    name, other = nouns.names(2, rng, unseen)
    system = rng.choice(("Your name is {}.", "You are {}.", "You are called {}.", "Call yourself {}.")).format(name)
    question = typed(GRAMMAR.say("{name}", rng, {"other": other}, unseen=unseen), rng)
    turns = question_and_answer(question, f"My name is {name}.", f"I am {name}.")
    return Item("name from the system prompt", (system, question), turns, f"My name is {name}.", system)


def _styled(rng: random.Random, unseen: bool) -> Item:
    system, sign = rng.choice(list(talk.STYLES)), rng.choice("++-x")
    problem = Problem(rng.randint(0, 9), sign, rng.randint(0, 9))
    question = typed(sums.GRAMMAR.say(f"{{{sign}}}", rng, {"a": problem.left, "b": problem.right}, unseen=unseen), rng)
    answer = talk.style(str(problem.answer), system)
    turns = question_and_answer(question, answer, arithmetic.think(problem))
    return Item("answer as the system prompt says", (system, question), turns, answer, system)
