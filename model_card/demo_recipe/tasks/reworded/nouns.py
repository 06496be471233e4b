"""Word lists of the wider wording, and words that are made up, so that a noun or a name that was never seen is read as
one.
"""

import random
from collections.abc import Sequence

from model_card.demo_recipe.tasks import words
from model_card.demo_recipe.tasks.reworded.grammar import part

NAMES = tuple(
    """
Aaron Abby Adele Ahmed Aiko Akira Alan Alex Ali Amara Amelia Amir Amy Andre Angela Arjun Arthur Asha Astrid Bella Bianca Bjorn Boris
Carla Carlos Cecil Chen Chloe Chris Cora Cyrus Daisy Daniel Daria Dave Deepa Diana Diego Dora Dylan Eddie Edith Ella Elsa Emil Eric
Esther Ethan Fatima Fay Fiona Frank Fred Gina Giulia Gus Hana Harry Hassan Heidi Helen Henry Ian Ines Ira Isaac Ivan Jade James Jane
Jasper Jenny Joan Joe John Jonas Jose Josh Judy Julia Kai Karim Karl Kenji Kim Klara Kwame Lars Laura Lee Leila Lena Liam Lily Linda
Lola Louis Luca Luis Maja Malik Marco Mark Mary Maya Megan Mei Mika Mike Milan Mina Mohamed Mona Nadia Naomi Nick Nils Noah Nora Olga
Olivia Omar Owen Pablo Pam Patrick Pedro Peter Petra Priya Quinn Rachel Raj Ravi Rita Robert Robin Rohan Ruby Ruth Sally Samir Sandra
Sara Simon Sofia Stella Steve Sven Tara Theo Tim Tina Tomas Uma Ursula Victor Viktor Wanda Wei Yara Yuki Yusuf Zack Zara
Ada Agnes Aisha Alba Albert Alma Anders Andy Anita Anton April Arno Ava Basil Beth Bill Bruno Callum Cathy Celia Charlie Cindy Colin
Connor Dan Danny Dean Della Dennis Derek Dina Don Donna Doris Earl Edgar Elena Eli Elias Eliza Emily Enzo Erik Erin Eve Farah
Finn Flora Gabe Gail Gary George Gerda Gita Glen Greta Gwen Hank Hilda Holly Hope Ilse Imran Iris Isla Jacob Jan Jason Jean Jeff Jill
Jim Joel Joy Juan June Karen Karin Katie Keith Ken Kevin Kira Kurt Kyle Lara Lea Leah Lewis Lina Lisa Logan Lou Luke Lydia Mabel Mae
Magda Marie Martha Mason Mateo Matt Mia Miguel Mila Miriam Molly Moses Nancy Ned Nell Neil Norman Otto Paula Pearl Penny
Phil Pia Ralph Ray Rex Rhea Rick Rob Roger Ron Ross Roy Rufus Sean Seth Silas Sid Sue Susan Tanya Ted Teo Tess Toby Tony Troy Vic
""".split()  # noqa: SIM905
)
THINGS = tuple(
    """
apples oranges lemons plums cherries grapes melons bananas peaches berries strawberries tomatoes potatoes carrots onions pumpkins nuts
books comics magazines pages letters postcards stamps tickets posters pictures photos maps pencils pens crayons markers brushes erasers
coins notes marbles beads buttons shells stones rocks sticks leaves feathers flowers roses tulips trees seeds plants
cups plates bowls forks spoons bottles jars cans boxes bags baskets candles lamps chairs tables pillows blankets towels
shirts socks shoes hats caps gloves scarves coats belts rings bracelets balls dolls toys puzzles games cards stickers balloons kites
cars trucks bikes buses trains boats planes wheels tires bricks tiles nails screws bolts planks pipes batteries cables phones
dogs cats birds hens ducks geese cows sheep goats pigs horses rabbits fish frogs bees ants spiders mice
cakes cookies muffins rolls loaves pies sandwiches pizzas sweets candies chocolates donuts eggs pancakes lollipops
children students pupils players guests visitors passengers people kids friends workers soldiers singers dancers
brothers fans chickens lambs turtles penguins monkeys dinosaurs robots lions kittens puppies butterflies snails
mangoes limes kiwis figs olives beans peas mushrooms cabbages lettuces biscuits crackers waffles bagels scones
mugs glasses lids pans pots ribbons magnets darts crystals diamonds pearls pebbles bulbs cubes blocks chips
tents ladders ropes drums guitars helmets jackets dresses skirts boots mittens umbrellas backpacks notebooks folders
songs videos films messages emails points goals badges medals trophies keys locks rooms houses seats desks windows doors flags
""".split()  # noqa: SIM905
)
COLORS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "purple", "gray", "orange", "golden")
ADJECTIVES = ("big", "small", "old", "new", "cheap", "broken", "ripe", "plastic", "wooden", "round", "fresh", "shiny")
PLACES = (
    "in the box", "on the table", "in the room", "in the garden", "at the park", "in the basket", "on the shelf",
    "in the kitchen", "in the drawer", "at school", "in the shop", "on the floor", "in the yard", "on the bus",
    "in the car", "in the bag", "on the desk", "under the bed", "in the cellar", "on the roof", "in the attic", "by the door",
    "in the shed", "on the boat", "in the classroom", "at the market", "in the office", "on the beach", "in the bowl",
    "on the wall", "in the tent", "in the bucket", "behind the house", "near the river", "in the street", "at home",
    "in the field", "in the hall", "in the library", "in the jar", "on the train", "in the pond", "on the farm",
)  # fmt: skip
CONTAINERS = (
    ("box", "boxes"), ("bag", "bags"), ("crate", "crates"), ("jar", "jars"), ("tray", "trays"), ("pack", "packs"),
    ("packet", "packets"), ("shelf", "shelves"), ("row", "rows"), ("basket", "baskets"), ("table", "tables"),
    ("drawer", "drawers"), ("carton", "cartons"), ("bucket", "buckets"), ("page", "pages"), ("team", "teams"),
    ("class", "classes"), ("bus", "buses"), ("car", "cars"), ("room", "rooms"), ("house", "houses"),
    ("garden", "gardens"), ("tin", "tins"), ("bundle", "bundles"), ("pile", "piles"), ("sack", "sacks"),
    ("case", "cases"), ("folder", "folders"), ("album", "albums"), ("bowl", "bowls"), ("tank", "tanks"), ("tower", "towers"),
    ("group", "groups"), ("cage", "cages"), ("envelope", "envelopes"), ("bottle", "bottles"), ("wagon", "wagons"),
    ("plate", "plates"), ("field", "fields"), ("train", "trains"), ("boat", "boats"), ("stack", "stacks"), ("tent", "tents"),
)  # fmt: skip
LENGTHS = (
    "m",
    "metres",
    "cm",
    "centimetres",
    "km",
    "kilometres",
    "miles",
    "feet",
    "inches",
    "yards",
    "steps",
    "meters",
)
ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905


def name(rng: random.Random, unseen: bool = False) -> str:
    """A first name, every sixth one made up."""
    if rng.random() < 0.17:
        return invented(rng).capitalize()
    return part(NAMES, rng, unseen) if rng.random() < 0.7 else rng.choice(words.NAMES)


def names(count: int, rng: random.Random, unseen: bool = False) -> list[str]:
    """Different names; every fourth set has two that differ in a letter."""
    found = list[str]()
    while len(found) < count:
        new = near(found[0], rng) if len(found) == 1 and rng.random() < 0.25 else name(rng, unseen)
        if new not in found:
            found.append(new)
    rng.shuffle(found)
    return found


def things(rng: random.Random, unseen: bool = False) -> str:
    """A plural, perhaps made up or with an adjective."""
    noun = f"{invented(rng)}s" if rng.random() < 0.12 else part(THINGS, rng, unseen)
    return f"{rng.choice((*COLORS, *ADJECTIVES))} {noun}" if rng.random() < 0.12 else noun


def invented(rng: random.Random) -> str:
    """A word that can be pronounced, such as `tolemi`."""
    return "".join(
        rng.choice(("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "ch", "sh", "st", "tr"))
        + rng.choice(("a", "e", "i", "o", "u", "an", "en", "in", "or", "ar", "ee", "oo"))
        for _ in range(rng.randint(2, 3))
    )


def near(word: str, rng: random.Random) -> str:
    """The word with one letter changed, added or left out, its first letter kept in case."""
    place, letter = rng.randrange(len(word)), rng.choice("abcdefghilmnoprstuvw")
    if place == 0:
        letter = letter.upper() if word[0].isupper() else letter
    how = rng.random()
    if how < 0.6:
        return word[:place] + letter + word[place + 1 :]
    if how < 0.8 or len(word) < 4:
        return word[: place + 1] + letter.lower() + word[place + 1 :]
    changed = word[:place] + word[place + 1 :]
    return changed.capitalize() if word[0].isupper() else changed


def number(value: int, rng: random.Random, spelled: float = 0.05) -> str:
    """Digits, or, so often, words for what is below 100."""
    return spell(value) if value < 100 and rng.random() < spelled else str(value)


def spell(value: int) -> str:
    """47 -> forty-seven; from 0 to 99."""
    if value < 20:
        return ONES[value]
    tens, one = divmod(value, 10)
    return TENS[tens - 2] + (f"-{ONES[one]}" if one else "")


def listed(words: Sequence[str], rng: random.Random) -> str:
    """The words as a list, as different people write one."""
    how = rng.choice(
        (", ", ", ", ", ", ",", ",", " ", "  ", "; ", ";", " and ", " / ", "/", " | ", " , ", "[", "[,", "[ ", "(", "\n", "and", "and",
         ", and", "-", "*", '"', "'")
    )  # fmt: skip
    match how:
        case "[":
            return f"[{', '.join(words)}]"
        case "[,":
            return f"[{','.join(words)}]"
        case "[ ":
            return f"[{' '.join(words)}]"
        case '"' | "'":
            return ", ".join(f"{how}{word}{how}" for word in words)
        case ", and":
            return f"{', '.join(words[:-1])}, and {words[-1]}"
        case "*":
            return "\n" + "\n".join(f"* {word}" for word in words)
        case "(":
            return f"({', '.join(words)})"
        case "and":
            return f"{', '.join(words[:-1])} and {words[-1]}"
        case "-":
            return "\n" + "\n".join(f"- {word}" for word in words)
    return how.join(words)
