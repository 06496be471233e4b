"""The prompts with which `small4 check` asks the real model. Facts that a model of this size knows and that do not
change; the demo and scaled-down checkpoints know none of them.
"""

from .answers import Question

SMALLEST = 10_000_000_000  # parameters of a model that is asked these

_FACTS = (
    ("What is the capital of France? Answer with one word.", "Paris"),
    ("What is the capital of Japan? Answer with one word.", "Tokyo"),
    ("What is the capital of Canada? Answer with one word.", "Ottawa"),
    ("What is the capital of Australia? Answer with one word.", "Canberra"),
    ("Which planet is the largest of the solar system? Answer with one word.", "Jupiter"),
    ("What is the chemical symbol of gold? Answer with the symbol only.", "Au"),
    ("What is the chemical symbol of sodium? Answer with the symbol only.", "Na"),
    ("How many legs does a spider have? Answer with a number in digits.", "8"),
    ("How many degrees do the angles of a plane triangle add up to? Answer with a number.", "180"),
    ("In which year did the first humans land on the Moon? Answer with the year.", "1969"),
    ("In which year did the French Revolution begin? Answer with the year.", "1789"),
    ("Who wrote Hamlet? Answer with the family name.", "Shakespeare"),
    ("Who wrote Les Misérables? Answer with the family name.", "Hugo"),
    ("Who painted the Mona Lisa? Answer with the name.", "Leonardo", "Vinci"),
    ("Who proposed the theory of general relativity? Answer with the family name.", "Einstein"),
    ("What is 17 * 23? Answer with the number only.", "391"),
    ("What is 144 divided by 12? Answer with the number only.", "12"),
    ("What is the square root of 169? Answer with the number only.", "13"),
    ("Which language is mainly spoken in Brazil? Answer with one word.", "Portuguese"),
    ("Which ocean is between Africa and Australia? Answer with one word.", "Indian"),
    ("Which gas do plants take up for photosynthesis? Answer with its name.", "carbon dioxide", "CO2", "CO₂"),
    ("Which river flows through Cairo? Answer with one word.", "Nile"),
    ("Quelle est la capitale de l'Italie ? Réponds en un mot.", "Rome"),
    ("Was ist die Hauptstadt von Österreich? Antworte mit einem Wort.", "Wien"),
    ("¿Cuál es la capital de Perú? Responde con una palabra.", "Lima"),
    ("Translate 'cat' into French. Answer with one word.", "chat"),
    ("Which keyword defines a function in Python? Answer with the keyword only.", "def"),
    ("What does HTTP status 404 mean? Answer in two words.", "not found"),
    ("What is the opposite of 'hot'? Answer with one word.", "cold"),
    ("Spell the word 'house' backwards. Answer with the letters only.", "esuoh"),
)
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the current weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

QUESTIONS = [Question(ask, tuple(expect)) for ask, *expect in _FACTS]
QUESTIONS += [
    Question("Which color is the shape? Answer with one word.", ("red",), image="drawing: red circle"),
    Question("Which shape is in the picture? Answer with one word.", ("triangle",), image="drawing: green triangle"),
    Question("Which color is the square? Answer with one word.", ("blue",), image="drawing: blue square"),
    Question(
        "What is the weather like in Lyon right now?",
        tools=(_WEATHER,),
        call={"name": "get_weather", "arguments": {"city": "Lyon"}},
    ),
]
