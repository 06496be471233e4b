"""Stories of what comes and goes where it comes and goes: passengers of a bus, water of a tank, books of a library.

Each place has its own words: how it begins, what adds the number `x`, what takes it away, and what is asked at the end,
whether it grew or shrank. Rules of a phrase grammar; plain strings; `stories` draws from them. Slots as in
`story_rules`.
"""

Words = tuple[str, ...]
# What is told at first, what adds, what takes away, what is asked.
PLACES: dict[str, tuple[Words, Words, Words, Words]] = {
    "bus": (
        ("there <are|are|were> {a} people on the bus", "a bus <have|has|had> {a} passengers", "{a} people <sit|sit|sat> in a bus", "a bus <start|starts|started> with {a} people", "the tram <carry|carries|carried> {a} passengers", "~{a} people <ride|ride|rode> on a bus"),
        ("{x} people <get|get|got> on", "{x} more <get|get|got> on", "at the next stop {x} people <get|get|got> on", "{x} passengers <board|board|boarded> at {day} Street", "{x} <hop|hop|hopped> on", "at the station {x} more <come|come|came> in", "~{x} others <climb|climb|climbed> in"),
        ("{x} people <get|get|got> off", "{x} <get|get|got> off", "{x} <leave|leave|left> at the next stop", "at the school {x} people <step|step|stepped> out", "{x} passengers <leave|leave|left> it", "at the station {x} people <get|get|got> out", "~{x} <climb|climb|climbed> down"),
        ("how many people are on it now?", "how many passengers are there now?", "how many people are still on board?", "how many are on the bus now?", "how many ride on?", "with how many people does it drive on?", "~how many continue the ride?"),
    ),
    "tank": (
        ("there <are|are|were> {a} litres of water in the tank", "a tank <hold|holds|held> {a} litres", "the barrel <have|has|had> {a} litres of oil in it", "{a} litres of fuel <are|are|were> in the tank", "a pool <contain|contains|contained> {a} litres", "the bucket <have|has|had> {a} litres in it", "~a kettle <start|starts|started> out with {a} litres"),
        ("{x} litres <are|are|were> poured in", "{S} <fill|fills|filled> in {x} litres", "{S} <pour|pours|poured> in {x} more litres", "the rain <add|adds|added> {x} litres", "{x} more litres <flow|flow|flowed> in", "{S} <add|adds|added> {x} litres", "~{x} litres <run|run|ran> into it"),
        ("{x} litres <leak|leak|leaked> out", "{S} <pour|pours|poured> out {x} litres", "{S} <use|uses|used> {x} litres", "{x} litres <are|are|were> used", "{S} <drain|drains|drained> {x} litres", "{x} litres <evaporate|evaporate|evaporated>", "{S} <take|takes|took> out {x} litres", "~{x} litres <drip|drip|dripped> away"),
        ("how many litres are in it now?", "how much is in it now?", "how many litres are there now?", "how much water is that now?", "how many litres does it hold now?", "how full is it then, in litres?", "~what volume is inside now?"),
    ),
    "library": (
        ("a library <have|has|had> {a} books", "the library <own|owns|owned> {a} books", "{a} books <stand|stand|stood> on the shelf", "there <are|are|were> {a} books in the school library", "~a reading room <hold|holds|held> {a} books"),
        ("{x} books <are|are|were> brought back", "it <buy|buys|bought> {x} new ones", "{x} <are|are|were> returned", "{S} <donate|donates|donated> {x} books", "{x} new books <arrive|arrive|arrived>", "{M} <bring|brings|brought> back {x}", "~{x} more <are|are|were> shelved"),
        ("{x} <are|are|were> lent out", "{S} <borrow|borrows|borrowed> {x}", "{x} books <are|are|were> borrowed", "{x} <are|are|were> thrown out", "{M} <check|checks|checked> out {x} books", "{x} <get|get|got> lost", "~{S} <carry|carries|carried> {x} home"),
        ("how many books are there now?", "how many books does it have now?", "how many are on the shelves now?", "how many books is that?", "how many books does the library hold then?", "~what is the stock of books then?"),
    ),
    "farm": (
        ("a farm <have|has|had> {a} animals", "a farmer <have|has|had> {a} {beasts}", "there <are|are|were> {a} {beasts} on the farm", "{a} {beasts} <live|live|lived> in the barn", "{S} <keep|keeps|kept> {a} {beasts}", "the zoo <have|has|had> {a} animals", "~{a} {beasts} <graze|graze|grazed> in the field"),
        ("{x} <are|are|were> born", "{x} more <are|are|were> bought", "{x} young ones <are|are|were> born", "{x} <come|come|came> back", "the neighbour <bring|brings|brought> {x} more", "~{x} <hatch|hatch|hatched>"),
        ("{x} <are|are|were> sold", "{x} <run|run|ran> away", "{x} <die|die|died>", "{M} <buy|buys|bought> {x} of them", "{x} <escape|escape|escaped>", "a fox <take|takes|took> {x}", "~{x} <break|break|broke> loose"),
        ("how many animals are there now?", "how many animals are on the farm now?", "how many are there now?", "how many is that now?", "how many live there then?", "what is the number of animals now?", "~what is the size of the herd?"),
    ),
    "game": (
        ("{S} <have|has|had> {a} points", "a team <have|has|had> {a} points", "the score <is|is|was> {a}", "{S} <start|starts|started> with {a} points", "our team <have|has|had> {a} points at half time", "the screen <show|shows|showed> {a} points", "~{S} <lead|leads|led> with {a} points"),
        ("{x} points <are|are|were> added", "{x} more <are|are|were> won", "a bonus <give|gives|gave> {x} points", "the next round <bring|brings|brought> {x} points", "{x} extra points <follow|follow|followed>", "~a good move <yield|yields|yielded> {x}"),
        ("{x} points <are|are|were> lost", "a mistake <cost|costs|cost> {x} points", "{x} points <are|are|were> taken away", "a foul <cost|costs|cost> {x}", "the next round <cost|costs|cost> {x} points", "~a penalty <eat|eats|ate> up {x}"),
        ("how many points is that?", "how many points are there now?", "what is the score now?", "what is the new score?", "what does the screen show now?", "how many points in the end?", "~what stands on the board?"),
    ),
    "money": (
        ("{S} <have|has|had> {a} {money}", "there <are|are|were> {a} {money} in the account", "{S} <have|has|had> {a} {money} in {his} pocket", "{S} <start|starts|started> with {a} {money}", "the purse <hold|holds|held> {a} {money}", "{a} {money} <lie|lie|lay> in the piggy bank", "~the till <contain|contains|contained> {a} {money}"),
        ("{s} <earn|earns|earned> {x} {money}", "{s} <get|gets|got> {x} from {M}", "{s} <find|finds|found> {x} {money}", "{M} <pay|pays|paid> {him} {x}", "{x} {money} <come|come|came> in", "{s} <save|saves|saved> {x} more", "grandma <give|gives|gave> {him} {x}", "{s} <win|wins|won> {x} {money}", "~{s} <pocket|pockets|pocketed> another {x}"),
        ("{s} <spend|spends|spent> {x}", "{s} <pay|pays|paid> {x} for a {item}", "{s} <buy|buys|bought> a {item} for {x} {money}", "{s} <lose|loses|lost> {x} {money}", "{s} <give|gives|gave> {x} to {M}", "{s} <lend|lends|lent> {M} {x}", "a {item} <cost|costs|cost> {him} {x}", "the bank <take|takes|took> {x}", "~{s} <part|parts|parted> with {x}"),
        ("how much money is that now?", "how much {do} {s} have now?", "how much money {do} {s} have now?", "how many {money} are there now?", "how much is there now?", "how many {money} is that?", "how much money {has} {s} got now?", "~how rich {is} {s} then?"),
    ),
    "class": (
        ("a class <have|has|had> {a} pupils", "there <are|are|were> {a} children in class", "a school <have|has|had> {a} students", "a club <have|has|had> {a} members", "{a} kids <are|are|were> in the group", "a choir <have|has|had> {a} singers", "a course <begin|begins|began> with {a} people", "~a troop of {a} scouts <meet|meets|met>"),
        ("{x} <join|join|joined>", "{x} new ones <come|come|came>", "{x} more <join|join|joined>", "{x} <move|move|moved> in from another town", "{x} others <sign|sign|signed> up", "~{x} newcomers <appear|appear|appeared>"),
        ("{x} <leave|leave|left>", "{x} <move|move|moved> away", "{x} <quit|quit|quit>", "{x} <fall|fall|fell> ill and <go|go|went> home", "{x} <change|change|changed> to another one", "~{x} <drop|drop|dropped> out"),
        ("how many are there now?", "how many does it have now?", "how many are in it then?", "how many is that?", "what is its size now?", "~what is the headcount?"),
    ),
    "parking": (
        ("there <are|are|were> {a} cars in the car park", "{a} cars <stand|stand|stood> in a parking lot", "a garage <have|has|had> {a} cars in it", "{a} ships <lie|lie|lay> in the harbour", "{a} planes <stand|stand|stood> at the airport", "~a depot <shelter|shelters|sheltered> {a} trams"),
        ("{x} more <arrive|arrive|arrived>", "{x} <come|come|came>", "{x} <come|come|came> in", "in the next hour {x} <arrive|arrive|arrived>", "~{x} <pull|pull|pulled> in"),
        ("{x} <leave|leave|left>", "{x} <go|go|went> out", "by noon {x} <are|are|were> gone", "~{x} <pull|pull|pulled> out"),
        ("how many are there now?", "how many are parked there now?", "how many are still there?", "how many stand there now?", "how many is that?", "~what is the count then?"),
    ),
    "tree": (
        ("a tree <have|has|had> {a} {fruit}", "there <are|are|were> {a} birds in a tree", "{a} birds <sit|sit|sat> on a roof", "{a} ducks <swim|swim|swam> on a pond", "{a} bees <are|are|were> in the garden", "{a} crows <sit|sit|sat> on a fence", "~a wire <hold|holds|held> {a} swallows"),
        ("{x} more <come|come|came>", "{x} <are|are|were> added", "{x} others <appear|appear|appeared>", "the next day there <are|are|were> {x} more", "~{x} <show|show|showed> up"),
        ("{x} <fall|fall|fell> down", "{x} <go|go|went>", "{x} <are|are|were> gone after the storm", "{x} <disappear|disappear|disappeared>", "the cat <get|gets|got> {x}", "~the wind <take|takes|took> {x}"),
        ("how many are there now?", "how many are there then?", "how many are there in the end?", "how many do i see now?", "how many is that?", "~what number is there at last?"),
    ),
    "shop": (
        ("a shop <have|has|had> {a} {o} in stock", "a store <have|has|had> {a} {o}", "a bakery <have|has|had> {a} rolls", "the baker <bake|bakes|baked> {a} loaves", "a market stall <have|has|had> {a} {o}", "the kiosk <order|orders|ordered> {a} {o}", "a vending machine <hold|holds|held> {a} {o}", "~a stockroom <contain|contains|contained> {a} {o}"),
        ("{x} more <are|are|were> delivered", "a truck <bring|brings|brought> {x}", "{x} <come|come|came> in", "{x} <are|are|were> ordered and <arrive|arrive|arrived>", "{x} <are|are|were> sent back by customers", "~{x} <get|get|got> restocked"),
        ("{x} <are|are|were> sold", "customers <buy|buy|bought> {x}", "{S} <buy|buys|bought> {x}", "{x} <are|are|were> broken", "{x} <are|are|were> stolen", "{x} <go|go|went> to {M}", "~{x} <sell|sell|sold> out"),
        ("how many are in the shop now?", "how many does it have now?", "how many are there now?", "how many are in stock now?", "how many is that?", "what is the stock now?", "~what does the store hold then?"),
    ),
    "phone": (
        ("{S} <have|has|had> {a} photos on {his} phone", "a phone <have|has|had> {a} messages", "{a} emails <are|are|were> in the inbox", "a folder <hold|holds|held> {a} files", "a playlist <have|has|had> {a} songs", "a channel <have|has|had> {a} followers", "the disk <have|has|had> {a} files", "~an album <show|shows|showed> {a} pictures"),
        ("{x} new ones <are|are|were> added", "{x} more <come|come|came> in", "{x} <arrive|arrive|arrived>", "{S} <add|adds|added> {x}", "{M} <send|sends|sent> {x} more", "~{x} <drop|drop|dropped> in"),
        ("{x} <are|are|were> deleted", "{S} <delete|deletes|deleted> {x}", "{S} <remove|removes|removed> {x}", "{x} <get|get|got> lost", "{x} <are|are|were> taken off", "~{S} <wipe|wipes|wiped> {x}"),
        ("how many are there now?", "how many does it have now?", "how many are in it now?", "how many is that?", "how many are there in the end?", "~what is the count at last?"),
    ),
    "scale": (
        ("the temperature <is|is|was> {a} degrees", "it <is|is|was> {a} degrees", "the number on the screen <is|is|was> {a}", "a plant <is|is|was> {a} cm high", "a rope <is|is|was> {a} m long", "the parcel <weigh|weighs|weighed> {a} kg", "{S} <weigh|weighs|weighed> {a} kg", "a lift <is|is|was> on floor {a}", "the battery <is|is|was> at {a}", "~a dial <point|points|pointed> to {a}"),
        ("it <go|goes|went> up by {x}", "it <grow|grows|grew> by {x}", "it <rise|rises|rose> by {x}", "it <increase|increases|increased> by {x}", "{x} <are|are|were> added", "~it <climb|climbs|climbed> by {x}"),
        ("it <go|goes|went> down by {x}", "it <fall|falls|fell> by {x}", "it <drop|drops|dropped> by {x}", "it <shrink|shrinks|shrank> by {x}", "it <decrease|decreases|decreased> by {x}", "~it <sink|sinks|sank> by {x}"),
        ("what is it now?", "how much is it now?", "what is the number now?", "how much is that now?", "where is it now?", "what is the new value?", "what is it in the end?", "~where does it stand then?"),
    ),
    "hotel": (
        ("a hotel <have|has|had> {a} guests", "{a} guests <are|are|were> at the party", "there <are|are|were> {a} people at the cinema", "{a} people <stand|stand|stood> in line", "{a} visitors <are|are|were> in the museum", "a room <have|has|had> {a} people in it", "{a} swimmers <are|are|were> in the pool", "~a restaurant <seat|seats|seated> {a} diners"),
        ("{x} more <arrive|arrive|arrived>", "{x} <come|come|came> in", "{x} people <join|join|joined> them", "{x} more <walk|walk|walked> in", "{x} new ones <come|come|came>", "~{x} <check|check|checked> in"),
        ("{x} <leave|leave|left>", "{x} <go|go|went> home", "{x} <walk|walk|walked> out", "{x} of them <leave|leave|left> early", "{x} people <say|say|said> goodbye", "~{x} <check|check|checked> out"),
        ("how many people are there now?", "how many are there now?", "how many people are still there?", "how many is that?", "how many are there in the end?", "how many people do i count now?", "~what is the crowd then?"),
    ),
    "load": (
        ("a truck <carry|carries|carried> {a} {boxes}", "a ship <have|has|had> {a} {boxes} on board", "a wagon <hold|holds|held> {a} {boxes}", "{a} {boxes} <are|are|were> in the cellar", "a tower <is|is|was> made of {a} bricks", "a stack <have|has|had> {a} plates", "~a cart <bear|bears|bore> {a} {boxes}"),
        ("{x} more <are|are|were> put on", "{x} <are|are|were> loaded", "{S} <load|loads|loaded> {x}", "{S} <put|puts|put> {x} on top", "{x} <are|are|were> added", "~{S} <heave|heaves|heaved> up {x}"),
        ("{x} <are|are|were> taken off", "{x} <are|are|were> unloaded", "{S} <unload|unloads|unloaded> {x}", "{x} <fall|fall|fell> off", "{S} <take|takes|took> down {x}", "~{S} <haul|hauls|hauled> off {x}"),
        ("how many are there now?", "how many are on it now?", "how many is that?", "how many are there in the end?", "how many does it have now?", "~what is the load then?"),
    ),
    "kitchen": (
        ("there <are|are|were> {a} eggs in the fridge", "{S} <bake|bakes|baked> {a} {treats}", "a jar <have|has|had> {a} {treats}", "a plate <hold|holds|held> {a} {treats}", "{a} {treats} <lie|lie|lay> on a tray", "mum <make|makes|made> {a} {treats}", "~a tin <contain|contains|contained> {a} {treats}"),
        ("{S} <bake|bakes|baked> {x} more", "{S} <put|puts|put> in {x} more", "{M} <bring|brings|brought> {x}", "{x} <are|are|were> added", "{S} <buy|buys|bought> {x} more", "~{M} <slip|slips|slipped> in {x}"),
        ("{M} <eat|eats|ate> {x}", "{x} <are|are|were> eaten", "the children <eat|eat|ate> {x} of them", "{S} <use|uses|used> {x}", "{x} <break|break|broke>", "the dog <eat|eats|ate> {x}", "{x} <get|get|got> burned", "~{M} <nibble|nibbles|nibbled> {x}"),
        ("how many are there now?", "how many are there then?", "how many is that?", "how many can we still eat?", "how many are there in the end?", "how many do we have now?", "~what number is there for guests?"),
    ),
    "trip": (
        ("{S} <is|is|was> on page {a}", "{S} <is|is|was> at kilometre {a}", "a climber <is|is|was> at {a} metres", "a train <is|is|was> at kilometre {a}", "a snail <is|is|was> {a} cm up the wall", "a token <is|is|was> on square {a}", "~a hiker <rest|rests|rested> at {a} metres"),
        ("{x} more <follow|follow|followed>", "from there it <go|goes|went> on by {x}", "the next move <is|is|was> {x} forward", "{x} more <are|are|were> done", "~{x} <come|come|came> on top"),
        ("the next move <is|is|was> {x} back", "from there it <go|goes|went> back by {x}", "it <slip|slips|slipped> back by {x}", "~{x} back it <go|goes|went>"),
        ("what is the new number?", "which number is that?", "where is that?", "at which number is it now?", "what is the number in the end?", "~what mark is reached?"),
    ),
}  # fmt: skip
RULES: dict[str, Words] = {
    "beasts": ("cows", "sheep", "pigs", "hens", "goats", "horses", "ducks", "geese", "lambs", "~turkeys"),
    "fruit": ("apples", "pears", "plums", "cherries", "leaves", "lemons", "nuts", "nests", "~figs"),
    "treats": ("cookies", "muffins", "cakes", "rolls", "pies", "sweets", "pancakes", "waffles", "biscuits", "~scones"),
}  # fmt: skip
RULES |= {
    f"{name}_{part}": texts
    for name, (start, _, _, asked) in PLACES.items()
    for part, texts in (("start", start), ("asked", asked))
}
RULES |= {
    f"{name}_{change}_{letter}": tuple(text.replace("{x}", f"{{{letter}}}") for text in texts)
    for name, (_, gain, lose, _) in PLACES.items()
    for change, texts in (("gain", gain), ("lose", lose))
    for letter in "bc"
}
