"""Stories that ask for what was at first or for the change, and those that tell a number by another: rules of a phrase
grammar. Plain strings; `stories` draws from them. Slots as in `story_rules`; in differences `a` is the larger number.
"""

RULES: dict[str, tuple[str, ...]] = {
    # -- what was at first, after a loss: a + b
    "lost_a": (
        "{S} <give|gives|gave> away {a} {o}", "{S} <sell|sells|sold> {a} {o}", "{S} <lose|loses|lost> {a} {o}", "{S} <eat|eats|ate> {a} {o}", "{S} <use|uses|used> {a} {o}", "{S} <throw|throws|threw> away {a} {o}",
        "{S} <break|breaks|broke> {a} {o}", "{S} <lend|lends|lent> {M} {a} {o}", "{M} <take|takes|took> {a} of the {o}", "{M} <buy|buys|bought> {a} {o} from {S}", "{S} <give|gives|gave> {M} {a} {o}",
        "{a} of the {o} <are|are|were> stolen", "{S} <misplace|misplaces|misplaced> {a} {o}", "{a} {o} <get|get|got> lost", "{S} <drop|drops|dropped> {a} {o}", "~{S} <hand|hands|handed> out {a} {o}", "~{S} <burn|burns|burned> {a} {o}",
    ),
    "keeps_b": (
        " and {has} {b} left", ". now {s} {has} {b} left", " and still {has} {b}", ", now there are {b}", " and there are {b} left", ". {b} are left", ", {b} remain", " and keeps {b}", ". then there <are|are|were> {b} left", ", which leaves {b}",
        "~ and {b} stay",
    ),
    "before_asked": (
        "how many {o} <are|are|were> there at first?", "how many {o} did {S} have at first?", "how many {o} did {S} have before?", "how many <are|are|were> there before?", "how many {o} did {S} start with?", "how many were there in the beginning?",
        "with how many {o} did {S} start?", "how many {o} had {S} before that?", "how many were there at the start?", "what was the number of {o} before?", "~what number of {o} was it once?",
    ),
    # -- a number told by another: a + b
    "rel_more": (
        "{M} <have|has|had> {b} {o}. {S} <have|has|had> {a} more than {M}. how many {o} does {S} have?", "{S} <have|has|had> {a} more {o} than {M}, who <have|has|had> {b}. how many {o} does {S} have?", "{M} <have|has|had> {b} {o} and {S} <have|has|had> {a} more. how many does {S} have?",
        "how many {o} does {S} have if {M} has {b} and {S} has {a} more than that?", "{M} is {b} years old. {S} is {a} years older. how old is {S}?", "{S} is {a} years older than {M}, who is {b}. how old is {S}?", "{M} is {b}. how old is {S}, who is {a} years older?",
        "a {item} costs {b} {money}, a {item2} {a} {money} more. what does the {item2} cost?", "{M} runs {b} {unit}. {S} runs {a} {unit} more. how far does {S} run?", "{M} <have|has|had> {b} {o}, which is {a} fewer than {S} <have|has|had>. how many {o} does {S} have?",
        "{S} got {a} points more than {M}. {M} got {b}. how many points did {S} get?", "the {color} {box} holds {b} {o} and the {color2} {box} {a} more. how many are in the {color2} {box}?", "{M} weighs {b} kg, {S} {a} kg more. how much does {S} weigh?",
        "one {item} is {b} {unit} {long}. another one is {a} {unit} {longer}. how {long} is that one?", "there were {b} guests on {day} and {a} more than that on {day}. how many came then?", "{M} <make|makes|made> {b} {o}; {S} {a} more. how many {o} did {S} make?",
        "~{S} beats {M} by {a} points. {M} has {b}. what does {S} have?", "~next to the {b} {o} of {M}, {S} has {a} more. how many are {S}'s?",
    ),
    "rel_less": (
        "{M} <have|has|had> {a} {o}. {S} <have|has|had> {b} fewer than {M}. how many {o} does {S} have?", "{S} <have|has|had> {b} fewer {o} than {M}, who <have|has|had> {a}. how many {o} does {S} have?", "{M} <have|has|had> {a} {o} and {S} <have|has|had> {b} less. how many does {S} have?",
        "how many {o} does {S} have if {M} has {a} and {S} has {b} fewer than that?", "{M} is {a} years old. {S} is {b} years younger. how old is {S}?", "{S} is {b} years younger than {M}, who is {a}. how old is {S}?", "{M} is {a}. how old is {S}, who is {b} years younger?",
        "a {item} costs {a} {money}, a {item2} {b} {money} less. what does the {item2} cost?", "{M} runs {a} {unit}. {S} runs {b} {unit} less. how far does {S} run?", "{M} <have|has|had> {a} {o}, which is {b} more than {S} <have|has|had>. how many {o} does {S} have?",
        "{S} got {b} points less than {M}. {M} got {a}. how many points did {S} get?", "the {color} {box} holds {a} {o} and the {color2} {box} {b} fewer. how many are in the {color2} {box}?", "{M} weighs {a} kg, {S} {b} kg less. how much does {S} weigh?",
        "a {item} cost {a} {money}. in the sale it is {b} {money} cheaper. what does it cost now?", "there were {a} guests on {day} and {b} fewer than that on {day}. how many came then?", "{M} <make|makes|made> {a} {o}; {S} {b} fewer. how many {o} did {S} make?",
        "~{S} lies {b} points behind {M}, who has {a}. what does {S} have?", "~{M} owns {a} {o}; take off {b} and you have {S}'s number. what is it?",
    ),
    # -- what was at first, what changed, what is missing: a - b
    "unknown_less": (
        "{S} <have|has|had> some {o}. {S} {got} {b} more and now has {a}. how many did {S} have at first?", "{S} had some {o}. then {S} got {b} more. now {S} has {a}. how many {o} were there before?", "after {M} gave {S} {b} {o}, {S} has {a}. how many did {S} have before?",
        "{S} had {b} {o}. now {S} has {a}. how many {o} did {S} get?", "{S} had {b} {o} and bought some more. now there are {a}. how many did {S} buy?", "there were {b} {o} {place}. now there are {a}. how many were added?", "{S} had {b} {o}. {M} gave {S} some, and now {S} has {a}. how many did {M} give?",
        "{S} had {a} {o}. {S} {lost} some. now {S} has {b}. how many are gone?", "{S} had {a} {o} and lost some. {b} are left. how many did {S} lose?", "there were {a} {o} {place}. now there are {b}. how many were taken?", "a shop had {a} {o}. now it has {b}. how many were sold?",
        "{S} {lost} some of {a} {o}. {b} are left. how many is that?", "{a} {o} were {place}. {S} took some and left {b}. how many did {S} take?", "{S} wants {a} {o} and has {b}. how many are still missing?", "{S} needs {a} {o} and has {b}. how many more does {S} need?",
        "{S} has {b} {o} but needs {a}. how many are missing?", "how many {o} does {S} still need to have {a}, if {S} has {b}?", "a {item} costs {a} {money}. {S} has {b} {money}. how much is missing?", "{S} saves for a {item} that costs {a} {money} and has {b} so far. how much more does {S} need?",
        "the way is {a} {unit} long. {S} has gone {b} {unit}. how far is there to go?", "a book has {a} pages and {S} is on page {b}. how many pages are to go?", "a {item} costs {b} {money}. {S} pays with {a} {money}. how much does {S} get back?", "a class has {a} children. {b} are girls. how many boys are there?",
        "there are {a} {o}. {b} are {color}, the others {color2}. how many are {color2}?", "of {a} {o} {b} belong to {S}, the rest to {M}. how many does {M} have?", "{S} and {M} have {a} {o} together. {S} has {b}. how many does {M} have?", "together {S} and {M} are {a} years old. {S} is {b}. how old is {M}?",
        "{a} people have tickets, {b} have come. how many are not here yet?", "{S} has to do {a} sums and has done {b}. how many are left to do?", "a bus has {a} seats. {b} are taken. how many are free?", "{S} has {b} points and needs {a} to win. how many points to go?",
        "a hall has {a} chairs and {b} people sit. how many chairs are empty?", "there is room for {a} {o} in the {box} and {b} are in it. how many more fit?", "the film lasts {a} minutes and {S} has seen {b}. how many minutes are left?", "a rope of {a} {unit} is cut in two. one part is {b} {unit}. how long is the other?",
        "~{S} ordered {a} {o}, but only {b} came. how many should still come?", "~{b} of {a} lights work. how many are out?", "~a jump from {b} to {a} is how big?", "~{S} counted {a} {o} before and {b} after. how many went?",
    ),
    "got": ("got", "bought", "found", "won", "received", "picked", "made", "borrowed", "earned", "collected", "~obtained"),
    "lost": ("lost", "sold", "ate", "gave away", "used", "broke", "spent", "threw away", "lent out", "dropped", "~squandered"),
    # -- twice the same: a + (a + b), told `b` more
    "more_and_both": (
        "{M} <have|has|had> {a} {o} and {S} <have|has|had> {b} more. how many do they have together?", "{M} has {a} {o}. {S} has {b} more than {M}. how many {o} do they have in all?", "{M} is {a} years old and {S} {b} years older. how old are they together?",
        "a {item} costs {a} {money}, a {item2} {b} {money} more. what do both cost?", "{S} made {a} {o} on {day} and {b} more than that on {day}. how many {o} is that in all?", "~{M} scores {a} points, {S} {b} more than that. what do they score together?",
    ),
}  # fmt: skip
