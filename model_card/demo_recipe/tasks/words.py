"""Word lists of the demo's data. Plain strings."""

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jack", "Kate", "Leo", "Maria", "Nina",
    "Oscar", "Paul",
    "Rosa", "Sam", "Tom", "Vera", "Will", "Zoe", "Adam", "Lucy", "Max", "Eva", "Alice", "Bob",
)  # fmt: skip
THINGS = (
    "apples", "books", "coins", "eggs", "flowers", "cards", "pens", "stamps", "shells", "cups", "balls", "keys",
    "marbles", "pears",
    "stones", "stickers", "buttons", "cakes", "nuts", "toys",
)  # fmt: skip
OBJECTS = (
    "lamp", "chair", "table", "clock", "phone", "camera", "bag", "shirt", "bottle", "mirror", "guitar", "drum", "sofa",
    "bed", "desk",
    "radio", "bike", "car", "boat", "house", "door", "window", "garden", "tower", "bridge", "box", "safe", "ring",
    "coat", "hat",
    "knife", "spoon", "map", "flag", "rope", "tent", "kite", "ladder", "piano", "violin",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Oslo", "Vienna", "Lisbon", "Prague", "Athens", "Dublin", "Warsaw",
    "Tokyo", "Delhi",
    "Cairo", "Lima", "Boston", "Chicago", "Sydney", "Toronto",
)  # fmt: skip
# For spelling: common words of three to eight letters.
WORDS = tuple(
    """
able acid acorn actor again agent alarm album alley amber angel angle ankle apple april apron arena arrow aside atlas attic aunt autumn
award bacon badge baker banana band bank barn basin basket beach beak bean bear beauty bench berry bird biscuit black blade blanket
blossom board bone bonus book border bottom bowl brain branch brave bread breeze brick bridge bright broom brother brown brush bubble
bucket budget bundle butter button cabin cable cactus cake camel camera camp canal candle candy cannon canoe canvas captain carbon
card carpet carrot castle cattle cave cellar center chain chair chalk charm cheese cherry chess chicken chief child choice circle
circus city claim clay clever cliff climb clock cloud clover coach coast cobra cocoa coffee collar colour comet cookie copper coral
corn cotton couch cousin cover crab cradle crane cream crew cricket crown crystal cup curtain daisy dance danger dawn deer desert
diamond dinner doctor dolphin donkey door double dragon drama dream dress drink driver duck dust eagle early earth east echo edge
effort eight elbow elephant empire engine evening event fabric face factory fairy family farmer feather fence fever field finger fire
fish flame flower flute fly forest fork fossil fountain fox frame friend frog frost fruit future galaxy game garage garden garlic gate
ghost giant giraffe glass globe glove goat gold goose grape grass green guest guitar hammer harbor harvest hat hawk heart hedge helmet
hero hill hobby honey hope horse hotel hour house hunter ice idea insect iron island ivory jacket jelly jewel joke journey juice
jungle kettle key king kitchen kitten knee knife ladder lake lamp lantern laptop lawn leaf leather lemon letter library light lily
lion liquid lizard lobster locket lotus lumber machine magnet mango maple marble market meadow melon memory metal middle milk mill
mirror monkey moon morning moth motor mountain mouse museum music napkin needle nest night noodle north nose number oak oasis object
ocean office olive onion opera orange orchard otter oven owl oxygen oyster paddle paint palace palm panda paper parade parrot party
pasta peach peanut pearl pencil pepper piano picnic pigeon pillow pilot pine pirate planet plate pocket poem pony potato powder prince
puddle pumpkin puppet puppy purple puzzle queen quiet quilt rabbit raccoon radar radio rain ranch raven reader ribbon rice ring river
road robin robot rocket roof room rooster rose ruby sail salad salmon salt sand saturn school scissors seal season secret seed shadow
shark sheep shelf shell ship shoe shovel silk silver singer sister sketch skill sky smile snail snake snow soap sock soldier song soup
south spider spoon spring squirrel stable star station stone storm story strawberry stream street sugar summer sun sunset swan sweet
table tailor tea teacher temple tennis thunder ticket tiger timber toast tomato tooth torch tower town toy train travel tree triangle
trumpet tulip tunnel turtle uncle unicorn valley velvet village violin voice volcano wagon walnut water wave weather west whale wheat
wheel whistle willow window winter wizard wolf wonder wood wool world yard yellow zebra zipper
""".split()  # noqa: SIM905
)
