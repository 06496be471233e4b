"""Numbers that people, things, places and times have: how a text tells them, and how each is asked for.

The same facts can be followed by a look-up, by a comparison, by a sum or by the largest of them, so that only the
question decides. Plain strings; `lookups`, `stories` and `puzzles` draw from them.

Slots: `who` the owner, `v` the number, `u` a unit, `its` "Anna's age" or "the age of the dog". Of `told`, each text says
by itself what the number is; `brief` ones say it only behind another fact, or in front of the question.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from model_card.demo_recipe.tasks import words
from model_card.demo_recipe.tasks.reworded import nouns
from model_card.demo_recipe.tasks.reworded.grammar import BASE, PAST, THIRD, UNSEEN, Grammar, choose

POOLS: dict[str, tuple[str, ...]] = {
    "relatives": ("my sister", "my brother", "his sister", "her brother", "my mother", "my father", "mum", "dad", "grandma", "grandpa", "my aunt", "our neighbour", "the teacher", "the boy", "the girl",
        "my friend", "the new pupil", "her cousin", "the baker", "the nurse", "my boss", "the driver", "the twin", "Mr Hill", "Mrs Brown", "Dr Lee", "the old man"),
    "animals": ("the dog", "the cat", "the horse", "the rabbit", "the cow", "the parrot", "the goat", "the pony", "the turtle", "the white mouse", "the elephant", "the lion", "the hamster", "our puppy", "the snake"),
    "things": tuple(f"the {word}" for word in words.OBJECTS),
    "goods": ("the coffee", "the tea", "the soup", "the pizza", "the cake", "bread", "milk", "butter", "the ticket", "the bike", "the phone", "the shirt", "the jacket", "the small bag", "the large bag", "the sofa", "the game",
        "the haircut", "the ride", "the salad", "a coffee", "a tea", "a sandwich", "a kilo of rice", "the toy car", "the red pen", "the blue pen", "the guitar", "the ring", "the used car", "the new car", "breakfast", "lunch"),
    "cities": words.CITIES,
    "places": ("the school", "the station", "the beach", "the museum", "the airport", "the lake", "the market", "the farm", "the castle", "the forest", "the harbour", "the church", "the pool", "the next town", "the zoo", "the hotel",
        "the village", "the border", "the old mill", "the shop"),
    "offices": ("the bank", "the dentist", "the doctor", "reception", "the bakery", "the library", "the lab", "the kitchen", "the gym", "the office", "the canteen", "the cinema", "the toy department", "the shoe shop", "the workshop",
        "the police", "the taxi office", "the school office", "the restaurant", "the hairdresser"),
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "New Year", "Christmas", "the first day", "the second day", "the last day"),
    "events": ("the film", "the concert", "the meeting", "the match", "the lesson", "dinner", "the party", "the race", "the show", "the exam", "the play", "the tour", "the sale", "the bus tour", "the next train", "swimming", "the news",
        "the course", "maths", "English", "the boat trip", "the first lesson", "the second lesson", "the wedding"),
    "buildings": ("the tower", "the church", "the school", "the hotel", "the bridge", "the old house", "the hospital", "the mill", "the palace", "the new house", "the lighthouse", "the town hall"),
    "teams": ("the reds", "the blues", "the lions", "the tigers", "team A", "team B", "our team", "the other team", "class 5a", "class 5b", "the home team", "the guests", "the wolves", "the sharks"),
    "parts": ("the map", "the index", "the story about the fox", "the recipe for soup", "the poem", "the chapter on birds", "the table of kings", "the picture of the ship", "the chapter on trees", "the song", "the first exercise",
        "the answer key", "the recipe for bread", "the last chapter", "the crossword"),
    "lessons": ("maths", "English", "history", "music", "art", "biology", "sport", "French", "physics", "geography", "chess", "drama"),
    "rooms": ("the kitchen", "the bathroom", "the hall", "the bedroom", "the cellar", "the garage", "the attic", "the garden", "the classroom", "the stable", "the hut", "the tent"),
    "groups": ("apples", "pears", "plums", "lemons", "melons", "roses", "tulips", "pens", "rulers", "rolls", "eggs", "shoes", "gloves", "stamps", "tickets for adults", "tickets for children", "old books", "new books"),
}  # fmt: skip
PLURAL = (
    "the reds",
    "the blues",
    "the lions",
    "the tigers",
    "the guests",
    "the wolves",
    "the sharks",
    *POOLS["groups"],
)
MONEY, LENGTHS, DISTANCES = (
    ("euros", "dollars", "pounds", "cents"),
    ("cm", "metres", "m", "feet", "inches"),
    ("km", "miles", "metres", "minutes", "kilometres"),
)
NUMBER, HOURS = ("",), ("o'clock", "", "h", "")


@dataclass(frozen=True)
class Relation:
    """`pools` names who may have the number, `noun` the number itself, from 1 to `most`; `more` and `less` compare
    two; `adds` says whether a sum of two is worth asking for.
    """

    pools: str
    noun: str
    most: int
    units: tuple[str, ...]
    told: tuple[str, ...]
    brief: tuple[str, ...]
    ask: tuple[str, ...]
    more: str = ""
    less: str = ""
    adds: bool = False


RELATIONS: dict[str, Relation] = {
    "age": Relation("names names relatives animals", "age", 99, NUMBER,
        ("{who} <are|is|was> {v} years old", "{who} <are|is|was> {v} years of age", "{who} <are|is|was> aged {v}", "{who} turned {v} years old", "{who} <are|is|was> already {v} years old", "~{who} <have|has|had> reached the age of {v}"),
        ("{who} <are|is|was> {v}", "{who} {v}", "{who} just {v}", "~{who} only {v}"),
        ("how old <are|is|was> {who}?", "how old <are|is|was> {who}?", "{who} <are|is|was> how old?", "how many years old <are|is|was> {who}?", "what age <are|is|was> {who}?", "~what number of years does {who} count?"), "older", "younger", True),
    "price": Relation("goods goods things", "price", 200, MONEY,
        ("{who} <cost|costs|cost> {v} {u}", "{who} <cost|costs|cost> {v}", "{who} <sell|sells|sold> for {v} {u}", "you pay {v} {u} for {who}", "for {who} they ask {v} {u}", "the price of {who} <is|is|was> {v} {u}", "{who} <cost|costs|cost> ${v}", "~{who} <go|goes|went> for {v} {u}"),
        ("{who} {v}", "{who} {v} {u}", "{who} only {v}", "{who} ${v}", "~{who} just {v} {u}"),
        ("how much <are|is|was> {who}?", "how much <do|does|did> {who} cost?", "what <do|does|did> {who} cost?", "what do i pay for {who}?", "how many {u} for {who}?", "how much money do i need for {who}?", "how expensive <are|is|was> {who}?", "~what does one pay for {who}?"), "more expensive", "cheaper", True),
    "goods": Relation("groups", "price", 60, MONEY,
        ("{who} <cost|costs|cost> {v} {u} a piece", "{who} <are|is|was> sold at {v} {u}", "{who} <cost|costs|cost> {v} {u}", "we sell {who} for {v} {u}", "~{who} <come|comes|came> at {v} {u}"), ("{who} {v}", "{who} <are|is|was> {v}", "~{who} for {v}"),
        ("how much <are|is|was> {who}?", "what <do|does|did> {who} cost?", "what do you want for {who}?", "how many {u} are {who}?", "~what do they take for {who}?"), "more expensive", "cheaper"),
    "stock": Relation("groups", "number", 300, NUMBER,
        ("there <are|is|was> {v} {who} in stock", "we have {v} {who}", "{v} {who} <are|is|was> on the shelf", "the shop has {v} {who}", "~the store keeps {v} {who}"), ("{v} {who}", "~{v} of {who}"),
        ("how many {who} are there?", "how many {who} do we have?", "how many {who}?", "what is the number of {who}?", "~what quantity of {who} is there?")),
    "house": Relation("names names relatives", "house number", 200, NUMBER,
        ("{who} <live|lives|lived> in the house with number {v}", "{who} <live|lives|lived> in house {v}", "{who} <live|lives|lived> at house number {v}", "{who} <have|has|had> house number {v}", "the house of {who} is number {v}", "~{who} <reside|resides|resided> at number {v}"),
        ("{who} at {v}", "{who} at number {v}", "{who} in {v}", "~{who} over at {v}"),
        ("where <do|does|did> {who} live?", "at which number <do|does|did> {who} live?", "in which house <do|does|did> {who} live?", "which house is {who} in?", "at what number do i find {who}?", "what number is the house of {who}?", "~at whose number do i ring for {who}?"), "", ""),
    "room": Relation("names lessons relatives events", "room", 400, NUMBER,
        ("{who} <are|is|was> in room {v}", "{who} <have|has|had> room {v}", "you find {who} in room {v}", "room {v} is for {who}", "{who} <take|takes|took> place in room {v}", "~{who} <were|was|was> put in room {v}"),
        ("{who} in {v}", "{who} in room {v}", "{who} {v}", "~{who} over in {v}"),
        ("where <are|is|was> {who}?", "in which room <are|is|was> {who}?", "which room <are|is|was> {who} in?", "what room <do|does|did> {who} have?", "to which room do i go for {who}?", "where do i find {who}?", "~which door leads to {who}?")),
    "floor": Relation("offices offices names", "floor", 40, NUMBER,
        ("{who} <are|is|was> on floor {v}", "you find {who} on floor {v}", "floor {v} is where {who} is", "{who} <are|is|was> located on floor {v}", "~take the lift to floor {v} for {who}"), ("{who} on {v}", "{who} on floor {v}", "{who} {v}", "~{who} up on {v}"),
        ("where is {who}?", "on which floor is {who}?", "which floor is {who} on?", "what floor do i need for {who}?", "how high up is {who}?", "~at which floor do i get out for {who}?"), "higher up", "lower down"),
    "distance": Relation("cities places places", "distance", 900, DISTANCES,
        ("{who} <are|is|was> {v} {u} away", "it is {v} {u} to {who}", "to {who} it is {v} {u}", "the way to {who} is {v} {u} long", "we are {v} {u} from {who}", "{who} <are|is|was> {v} {u} from here", "~{who} <lie|lies|lay> {v} {u} off"),
        ("{who} {v}", "{who} {v} {u}", "{who} <are|is|was> {v}", "to {who} {v}", "~over to {who} {v}"),
        ("how far is {who}?", "how far is it to {who}?", "how far away is {who}?", "how many {u} is it to {who}?", "what is the distance to {who}?", "how long is the way to {who}?", "~what separates us from {who}?"), "farther", "nearer", True),
    "weight": Relation("names animals things", "weight", 300, ("kg", "kilos", "pounds", "grams", "g"),
        ("{who} <weigh|weighs|weighed> {v} {u}", "the weight of {who} is {v} {u}", "{who} <have|has|had> a weight of {v} {u}", "{who} <are|is|was> {v} {u} heavy", "~{who} <bring|brings|brought> {v} {u} on the scales"), ("{who} {v}", "{who} {v} {u}", "{who} only {v}", "~{who} a full {v}"),
        ("how much <do|does|did> {who} weigh?", "how heavy <are|is|was> {who}?", "what <do|does|did> {who} weigh?", "how many {u} <do|does|did> {who} weigh?", "~what do the scales say for {who}?"), "heavier", "lighter", True),
    "height": Relation("names buildings animals", "height", 250, LENGTHS,
        ("{who} <are|is|was> {v} {u} tall", "{who} <are|is|was> {v} {u} high", "the height of {who} is {v} {u}", "{who} <measure|measures|measured> {v} {u}", "~{who} <stand|stands|stood> {v} {u} tall"), ("{who} {v}", "{who} {v} {u}", "{who} <are|is|was> {v}", "~{who} at most {v}"),
        ("how tall <are|is|was> {who}?", "how high <are|is|was> {who}?", "what <do|does|did> {who} measure?", "how many {u} tall <are|is|was> {who}?", "~up to what height <do|does|did> {who} reach?"), "taller", "shorter"),
    "length": Relation("things events", "length", 300, ("minutes", "cm", "inches"),
        ("{who} <are|is|was> {v} {u} long", "the length of {who} is {v} {u}", "{who} <have|has|had> a length of {v} {u}", "~{who} <run|runs|ran> to {v} {u}"), ("{who} {v}", "{who} {v} {u}", "{who} <are|is|was> {v}", "~{who} some {v}"),
        ("how long <are|is|was> {who}?", "how many {u} long <are|is|was> {who}?", "what is the length of {who}?", "~what length <do|does|did> {who} have?"), "longer", "shorter", True),
    "lasts": Relation("events", "duration", 240, ("minutes", "hours", "days"),
        ("{who} <last|lasts|lasted> {v} {u}", "{who} <take|takes|took> {v} {u}", "{who} <go|goes|went> on for {v} {u}", "~{who} <fill|fills|filled> {v} {u}"), ("{who} {v}", "{who} {v} {u}", "{who} only {v}", "~{who} around {v}"),
        ("how long <do|does|did> {who} last?", "how long <do|does|did> {who} take?", "how many {u} <do|does|did> {who} last?", "how long is {who}?", "~for what time <do|does|did> {who} go on?"), "longer", "shorter", True),
    "starts": Relation("events events lessons", "start", 24, HOURS,
        ("{who} <start|starts|started> at {v} {u}", "{who} <begin|begins|began> at {v} {u}", "at {v} {u} {who} <begin|begins|began>", "{who} <are|is|was> at {v} {u}", "~{who} <get|gets|got> going at {v} {u}"), ("{who} at {v}", "{who} at {v} {u}", "{who} {v}", "~{who} from {v} on"),
        ("when <do|does|did> {who} start?", "at what time <do|does|did> {who} begin?", "when <are|is|was> {who}?", "what time is {who}?", "at which hour <do|does|did> {who} start?", "when do i have to be there for {who}?", "~by when must i be at {who}?"), "later", "earlier"),
    "opens": Relation("offices places", "opening time", 23, HOURS,
        ("{who} <open|opens|opened> at {v} {u}", "{who} <are|is|was> open from {v} {u}", "the doors of {who} open at {v} {u}", "~{who} <unlock|unlocks|unlocked> at {v} {u}"), ("{who} at {v}", "{who} at {v} {u}", "{who} {v}", "~{who} not before {v}"),
        ("when <do|does|did> {who} open?", "what time <do|does|did> {who} open?", "from when is {who} open?", "at which hour <do|does|did> {who} open?", "~from what hour may i go to {who}?"), "later", "earlier"),
    "closes": Relation("offices places", "closing time", 23, HOURS,
        ("{who} <close|closes|closed> at {v} {u}", "{who} <shut|shuts|shut> at {v} {u}", "{who} <are|is|was> open until {v} {u}", "~the last guests leave {who} at {v} {u}"), ("{who} at {v}", "{who} at {v} {u}", "{who} {v}", "~{who} not later than {v}"),
        ("when <do|does|did> {who} close?", "what time <do|does|did> {who} close?", "until when is {who} open?", "at what time <do|does|did> {who} shut?", "~at what hour is {who} locked up?"), "later", "earlier"),
    "leaves": Relation("cities", "departure", 24, HOURS,
        ("the train to {who} <leave|leaves|left> at {v} {u}", "the bus to {who} <go|goes|went> at {v} {u}", "to {who} you leave at {v} {u}", "the boat to {who} <sail|sails|sailed> at {v} {u}", "~for {who} they start at {v} {u}"), ("to {who} at {v}", "the one to {who} at {v}", "~that to {who} at {v}"),
        ("when do we leave for {who}?", "when does it go to {who}?", "at what time does it leave to {who}?", "what time do i leave for {who}?", "~at which hour is the ride to {who}?"), "later", "earlier"),
    "line": Relation("cities places", "bus line", 99, NUMBER,
        ("bus {v} <go|goes|went> to {who}", "line {v} <run|runs|ran> to {who}", "for {who} take bus {v}", "take the number {v} to {who}", "you reach {who} with line {v}", "~bus {v} <stop|stops|stopped> at {who}"), ("{v} to {who}", "the {v} to {who}", "~{v} as far as {who}"),
        ("which bus goes to {who}?", "which line do i take to {who}?", "what bus do i need for {who}?", "how do i get to {who}?", "which number goes to {who}?", "with which bus do i get to {who}?", "~what do i ride to {who}?")),
    "platform": Relation("cities", "platform", 30, NUMBER,
        ("the train to {who} leaves from platform {v}", "trains to {who} go from platform {v}", "for {who} go to platform {v}", "platform {v} is for {who}", "~{who} is served from platform {v}"), ("{who} from {v}", "{who} {v}", "~{who} over at {v}"),
        ("from which platform does the train to {who} leave?", "which platform for {who}?", "where does the train to {who} leave?", "~at which track do i wait for {who}?")),
    "page": Relation("parts", "page", 500, NUMBER,
        ("{who} <are|is|was> on page {v}", "you find {who} on page {v}", "{who} <begin|begins|began> on page {v}", "page {v} shows {who}", "see page {v} for {who}", "~{who} <stand|stands|stood> on page {v}"), ("{who} on {v}", "{who} on page {v}", "{who} {v}", "~{who} as far back as {v}"),
        ("on which page is {who}?", "which page is {who} on?", "where is {who}?", "what page do i open for {who}?", "where do i find {who}?", "~to which page do i turn for {who}?")),
    "score": Relation("names names teams", "score", 120, ("points", "goals", "points"),
        ("{who} <score|scores|scored> {v} {u}", "{who} <have|has|had> {v} {u}", "{who} <get|gets|got> {v} {u}", "{who} <win|wins|won> {v} {u}", "{v} {u} go to {who}", "~{who} <rack|racks|racked> up {v} {u}"), ("{who} {v}", "{who} only {v}", "{who} got {v}", "~{who} a mere {v}"),
        ("how many {u} <do|does|did> {who} have?", "how many {u} <do|does|did> {who} get?", "what <do|does|did> {who} score?", "what is the score of {who}?", "how many {u} for {who}?", "how did {who} do?", "~with how many {u} did {who} finish?"), "", "", True),
    "shirt": Relation("names names relatives", "shirt number", 99, NUMBER,
        ("{who} <wear|wears|wore> number {v}", "{who} <play|plays|played> with number {v}", "{who} <have|has|had> the number {v} on the shirt", "number {v} is {who}", "~the {v} on the back belongs to {who}"), ("{who} {v}", "{who} the {v}", "~{who} with {v}"),
        ("which number <do|does|did> {who} wear?", "what number is {who}?", "what is on the shirt of {who}?", "what number <do|does|did> {who} have?", "~with what number does {who} run?")),
    "owns": Relation("names names relatives", "number of {u}", 150, ("books", "stamps", "marbles", "cards", "coins", "shells", "pens", "toys"),
        ("{who} <have|has|had> {v} {u}", "{who} <own|owns|owned> {v} {u}", "{who} <collect|collects|collected> {v} {u}", "{who} <have|has|had> got {v} {u}", "there are {v} {u} in the bag of {who}", "~{who} <hold|holds|held> {v} {u}"), ("{who} {v}", "{who} <have|has|had> {v}", "{who} only {v}", "~{who} up to {v}"),
        ("how many {u} <do|does|did> {who} have?", "how many {u} <do|does|did> {who} own?", "how many <do|does|did> {who} have?", "what number of {u} does {who} have?", "{who} has how many {u}?", "how many {u} belong to {who}?", "~how many {u} are in the hands of {who}?"), "", "", True),
    "earns": Relation("names relatives", "pay", 900, MONEY,
        ("{who} <earn|earns|earned> {v} {u}", "{who} <get|gets|got> paid {v} {u}", "{who} <make|makes|made> {v} {u} a day", "{who} <save|saves|saved> {v} {u}", "~{who} <take|takes|took> home {v} {u}"), ("{who} {v}", "{who} {v} {u}", "~{who} all of {v}"),
        ("how much <do|does|did> {who} earn?", "how much money <do|does|did> {who} get?", "how much money <do|does|did> {who} make?", "what <do|does|did> {who} earn?", "~what sum ends up with {who}?"), "", "", True),
    "owes": Relation("names relatives", "debt", 200, MONEY,
        ("{who} <owe|owes|owed> me {v} {u}", "{who} still <have|has|had> to pay {v} {u}", "{who} borrowed {v} {u} from me", "~i am waiting for {v} {u} from {who}"), ("{who} {v}", "{who} {v} {u}", "~{who} a good {v}"),
        ("how much <do|does|did> {who} owe?", "how much <do|does|did> {who} owe me?", "what <do|does|did> {who} have to pay?", "how many {u} do i get from {who}?", "~what is still open with {who}?"), "", "", True),
    "speed": Relation("animals animals teams", "speed", 180, ("km per hour", "miles an hour", "km/h", "mph"),
        ("{who} <run|runs|ran> {v} {u}", "{who} <move|moves|moved> at {v} {u}", "the speed of {who} is {v} {u}", "{who} <go|goes|went> {v} {u}", "~{who} <race|races|raced> along at {v} {u}"), ("{who} {v}", "{who} {v} {u}", "~{who} up to {v}"),
        ("how fast <are|is|was> {who}?", "how fast <do|does|did> {who} go?", "what is the speed of {who}?", "at what speed <do|does|did> {who} move?", "~what pace <do|does|did> {who} keep?"), "faster", "slower"),
    "warm": Relation("cities cities rooms", "temperature", 45, ("degrees", "degrees", "C"),
        ("it <is|is|was> {v} {u} in {who}", "the temperature in {who} is {v} {u}", "in {who} it <is|is|was> {v} {u}", "{who} <have|has|had> {v} {u}", "~the thermometer shows {v} {u} in {who}"), ("{who} {v}", "{v} in {who}", "{who} {v} {u}", "~{who} no more than {v}"),
        ("how warm <is|is|was> it in {who}?", "how many {u} does {who} have?", "what is the temperature in {who}?", "how warm is {who}?", "how cold is it in {who}?", "what about {who}, how many {u}?", "~what does the thermometer say in {who}?"), "warmer", "colder"),
    "rooms": Relation("rooms rooms places", "number of {u}", 80, ("chairs", "lamps", "people", "windows", "boxes"),
        ("there <are|are|were> {v} {u} in {who}", "{v} {u} <are|are|were> in {who}", "{who} <have|has|had> {v} {u}", "in {who} there <are|are|were> {v} {u}", "we counted {v} {u} in {who}", "~{who} <hold|holds|held> {v} {u}"), ("{v} in {who}", "in {who} {v}", "{who} {v}", "~{v} over in {who}"),
        ("how many {u} are in {who}?", "how many {u} <do|does|did> {who} have?", "how many {u} are there in {who}?", "what number of {u} is in {who}?", "in {who}, how many {u}?", "~how many {u} would i find in {who}?"), "", "", True),
    "day": Relation("days", "number of {u}", 300, ("visitors", "guests", "letters", "pages", "orders", "calls", "customers"),
        ("on {who} there were {v} {u}", "we had {v} {u} on {who}", "{v} {u} came on {who}", "{who}: {v} {u}", "i counted {v} {u} on {who}", "~{who} brought {v} {u}"), ("{v} on {who}", "{who} {v}", "on {who} {v}", "~{v} again on {who}"),
        ("how many {u} on {who}?", "how many {u} were there on {who}?", "what was the number of {u} on {who}?", "on {who}, how many {u}?", "how many {u} did we have on {who}?", "~how many {u} go with {who}?"), "", "", True),
    "ticket": Relation("names relatives", "seat", 90, NUMBER,
        ("{who} <sit|sits|sat> in seat {v}", "{who} <have|has|had> seat {v}", "seat {v} is taken by {who}", "the seat of {who} is {v}", "seat {v} belongs to {who}", "~{who} <were|was|was> placed in seat {v}"), ("{who} in {v}", "{who} {v}", "{who} in seat {v}", "~{who} back in {v}"),
        ("where <do|does|did> {who} sit?", "in which seat is {who}?", "which seat <do|does|did> {who} have?", "what seat is {who} in?", "what is the seat of {who}?", "~which chair is reserved for {who}?")),
    "phone": Relation("offices names", "phone number", 9999, NUMBER,
        ("call {v} for {who}", "{who} <have|has|had> the number {v}", "the number of {who} is {v}", "dial {v} to reach {who}", "you reach {who} at {v}", "~ring {v} and you get {who}"), ("{who} {v}", "{who} at {v}", "{v} for {who}", "~{v} gets {who}"),
        ("what do i dial for {who}?", "which number do i call for {who}?", "how do i reach {who}?", "what number has {who}?", "what is the phone number of {who}?", "~what do i ring for {who}?")),
    "children": Relation("names relatives places", "number of {u}", 30, ("children", "cats", "dogs", "cousins", "trees", "cows", "chickens"),
        ("{who} <have|has|had> {v} {u}", "{v} {u} belong to {who}", "{who} <look|looks|looked> after {v} {u}", "~{who} <keep|keeps|kept> {v} {u}"), ("{who} {v}", "{who} <have|has|had> {v}", "~{who} even {v}"),
        ("how many {u} <do|does|did> {who} have?", "how many {u} does {who} look after?", "{who} has how many {u}?", "what number of {u} does {who} have?", "~with how many {u} is {who} blessed?"), "", "", True),
    "size": Relation("names relatives", "shoe size", 48, NUMBER,
        ("{who} <wear|wears|wore> size {v}", "{who} <take|takes|took> shoe size {v}", "{who} <need|needs|needed> shoes in size {v}", "~{who} <fit|fits|fitted> into size {v}"), ("{who} {v}", "{who} size {v}", "~{who} up in {v}"),
        ("what size <do|does|did> {who} wear?", "which shoe size <do|does|did> {who} have?", "what is the size of {who}?", "which size for {who}?", "~in what size do i buy shoes for {who}?")),
    "born": Relation("names relatives buildings", "year", 2020, NUMBER,
        ("{who} <come|comes|came> from the year {v}", "{who} <date|dates|dated> from {v}", "the year of {who} is {v}", "{v} is the year of {who}", "~the year {v} saw the start of {who}"), ("{who} {v}", "{who} in {v}", "~{who} back in {v}"),
        ("which year is it for {who}?", "what is the year of {who}?", "from which year <do|does|did> {who} come?", "when was that with {who}?", "~in what year do i place {who}?")),
    "place": Relation("names names teams", "place", 40, NUMBER,
        ("{who} <finish|finishes|finished> in place {v}", "{who} <come|comes|came> in at place {v}", "{who} <end|ends|ended> up in place {v}", "place {v} <go|goes|went> to {who}", "{who} <are|is|was> number {v} in the race", "~{who} <cross|crosses|crossed> the line in place {v}"), ("{who} {v}", "{who} in {v}", "~{who} down in {v}"),
        ("which place did {who} get?", "in what place did {who} finish?", "where did {who} finish?", "how did {who} do?", "what place went to {who}?", "~what was the rank of {who}?")),
    "drawer": Relation("things goods", "drawer", 60, NUMBER,
        ("{who} <are|is|was> in drawer {v}", "{who} <lie|lies|lay> in drawer {v}", "put {who} in drawer {v}", "drawer {v} holds {who}", "we keep {who} in drawer {v}", "~you get {who} out of drawer {v}"), ("{who} in {v}", "{who} {v}", "~{who} down in {v}"),
        ("where is {who}?", "in which drawer is {who}?", "which drawer holds {who}?", "where do we keep {who}?", "what drawer has {who}?", "~which drawer do i pull for {who}?")),
    "sleeps": Relation("names animals relatives", "time of sleep", 16, ("hours",),
        ("{who} <sleep|sleeps|slept> {v} {u}", "{who} <sleep|sleeps|slept> for {v} {u}", "{who} <need|needs|needed> {v} {u} of sleep", "~{who} <doze|dozes|dozed> for {v} {u}"), ("{who} {v}", "{who} {v} {u}", "~{who} no less than {v}"),
        ("how long <do|does|did> {who} sleep?", "how many hours <do|does|did> {who} sleep?", "how much sleep <do|does|did> {who} get?", "~for what time does {who} lie in bed?"), "", "", True),
    "ran": Relation("names relatives animals", "distance", 60, ("km", "miles", "laps", "kilometres"),
        ("{who} <run|runs|ran> {v} {u}", "{who} <walk|walks|walked> {v} {u}", "{who} <ride|rides|rode> {v} {u}", "{who} <swim|swims|swam> {v} {u}", "~{who} <cover|covers|covered> {v} {u}"), ("{who} {v}", "{who} {v} {u}", "{who} only {v}", "~{who} a proud {v}"),
        ("how far did {who} go?", "how many {u} did {who} do?", "how far did {who} get?", "what distance did {who} make?", "~over how many {u} did {who} go?"), "", "", True),
}  # fmt: skip
# Followed by the name of what is asked: a look-up, the larger of two less the smaller, two together, one of several.
RULES: dict[str, tuple[str, ...]] = {
    "gap_of_two": (
        "what is the difference?", "what's the difference?", "by how much do they differ?", "how big is the difference between the two?", "what is the difference between the two numbers?", "how far apart are the two numbers?",
        "how much do they differ?", "find the difference.", "difference?", "what is the larger minus the smaller?", "tell me the difference", "~what lies between the two numbers?",
    ),
    "gap_compared": (
        "how much {more} <are|is|was> {big} than {small}?", "how much {less} <are|is|was> {small} than {big}?", "how much {more} <are|is|was> {big}?",
        "by how much <are|is|was> {big} {more}?", "by how much <are|is|was> {big} {more} than {small}?", "by how much <are|is|was> {small} {less} than {big}?", "{big} <are|is|was> how much {more} than {small}?",
        "~{big} <are|is|was> {more}, but by how much?",
    ),
    "both": (
        "what is that together?", "how much is that together?", "what is the total?", "what do the two add up to?", "what is the sum of both?", "how much is it in total?", "add the two up", "and together?", "together?", "what is the sum of the numbers?",
        "how much is it all together?", "total?", "what do both make in all?", "what is that altogether?", "add both numbers", "~what do the two come to?",
    ),
    "best_fact": (
        "what is the {best_word} {noun}?", "which {noun} is the {best_word}?", "what is the {best_word} number here?", "which is the {best_word} number?", "which of the numbers is {best_word}?", "the {best_word} {noun}?",
        "tell me the {best_word} number", "which number is {best_word}?", "find the {best_word} {noun}", "what is the {best_word} of these numbers?", "~what {noun} stands out as the {best_word}?",
    ),
}  # fmt: skip
RULES |= {
    f"{name}_{part}": texts
    for name, relation in RELATIONS.items()
    for part, texts in (("told", relation.told), ("brief", relation.brief), ("ask", relation.ask))
}


GRAMMAR = Grammar(RULES)
COMPARED = tuple(
    name for name, relation in RELATIONS.items() if relation.most >= 99 and (relation.more or relation.adds)
)
ADDED = tuple(name for name in COMPARED if RELATIONS[name].adds)


@dataclass(frozen=True)
class Owner:
    """Whose number it is, and the form of the verb behind it."""

    who: str
    form: int

    def its(self, noun: str) -> str:
        """The number: "Anna's age" or "the age of the dog"."""
        short = self.who[0].isupper() and " " not in self.who
        return f"{self.who}'s {noun}" if short else f"the {noun} of {self.who}"


def owners(relation: Relation, count: int, rng: random.Random, unseen: bool = False, pool: str = "") -> list[Owner]:
    """Different ones, mostly of one sort; sometimes two names that are alike."""
    pool, found = pool or rng.choice(relation.pools.split()), list[str]()
    if pool == "names":
        found = nouns.names(count, rng, unseen)
        if rng.random() < 0.2 and "relatives" in relation.pools:
            found[-1] = rng.choice(POOLS["relatives"])
    elif pool == "things" and rng.random() < 0.3:
        noun = rng.choice(words.OBJECTS)
        found = [f"the {color} {noun}" for color in rng.sample(nouns.COLORS, count)]
    else:
        found = rng.sample(POOLS[pool], count)
    form = PAST if rng.random() < 0.25 else THIRD
    return [Owner(who, BASE if who in PLURAL else form) for who in found]


def tell(
    name: str,
    told: Sequence[tuple[Owner, str]],
    unit: str,
    rng: random.Random,
    unseen: bool = False,
    whole: bool = False,
) -> list[str]:
    """A text for each owner and value: all in whole sentences (always with `whole`), or shorter behind the first, or
    all of them short.
    """
    chance = 0.0 if whole else rng.random()
    parts = ["brief" if chance > (0.85 if i == 0 else 0.45) else "told" for i in range(len(told))]
    same = {part: choose(RULES[f"{name}_{part}"], rng, unseen) for part in ("told", "brief")}
    alike, texts = rng.random() < 0.7, list[str]()
    for part, (owner, value) in zip(parts, told, strict=True):
        text = same[part] if alike else choose(RULES[f"{name}_{part}"], rng, unseen)
        slots = {"who": owner.who, "v": value, "u": unit}
        texts.append(GRAMMAR.phrase(text.removeprefix(UNSEEN), rng, slots, owner.form))
    return texts


def joined(texts: Sequence[str], rng: random.Random) -> str:
    """The facts behind one another, as people join them."""
    joint = rng.choice((". ", ". ", ", ", " and ", "and", "and", "; ", "\n", ", while ", " but ", ". also, "))
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if joint == "and" else joint.join(texts)
