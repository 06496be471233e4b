"""What stories are told with: rules of a phrase grammar. Plain strings; `stories` draws from them.

Slots: `S` is who the story is about, `s`, `his` and `him` later mentions, `do` "do" or "does"; `M` and `K` other people;
`o` things; `a`, `b`, `c` numbers; `box` and `boxes`, `place`, `unit`, `item` and `color` as they say. `GAIN` and `LOSE`
tell of the number `x`, which `EVENTS` makes `b` or `c`.
"""

GAIN = (
    "{s} <buy|buys|bought> {x} more", "{s} <get|gets|got> {x} more", "{s} <find|finds|found> {x} more",
    "{s} <get|gets|got> another {x}", "{s} <buy|buys|bought> another {x}", "{s} <find|finds|found> {x}",
    "{M} <give|gives|gave> {him} {x} more", "{M} <give|gives|gave> {him} {x}", "{M} <hands|hands|handed> {him} {x} of {o}",
    "{s} <receive|receives|received> {x} from {M}", "{s} <win|wins|won> {x}", "{s} <add|adds|added> {x}",
    "{s} <pick|picks|picked> {x} more", "{s} <collect|collects|collected> {x} more", "{s} <make|makes|made> {x} more",
    "{s} <earn|earns|earned> {x} more", "{s} <borrow|borrows|borrowed> {x} from {M}", "{x} more <arrive|arrive|arrived>",
    "{x} more <come|come|came> in", "{x} more {o} <are|are|were> added", "{x} <join|join|joined> them",
    "{M} <bring|brings|brought> {x} more", "{M} <lend|lends|lent> {him} {x}", "{M} <send|sends|sent> {him} {x} more",
    "{his} friend {M} <give|gives|gave> {him} {x} of {his} own", "{s} <unpack|unpacks|unpacked> {x} more",
    "{s} <put|puts|put> {x} more with them", "{s} <order|orders|ordered> {x} more", "{s} <get|gets|got> {x} back",
    "{s} <grow|grows|grew> {x} more", "{s} <take|takes|took> {x} more from {M}", "{x} new ones <come|come|came>",
    "~{s} <gain|gains|gained> {x}", "~{s} <catch|catches|caught> {x} more", "~{M} <donate|donates|donated> {x}",
    "~{M} <pass|passes|passed> {him} {x} more", "~{s} <discover|discovers|discovered> {x} others",
    "~{x} more <turn|turn|turned> up", "~{s} <save|saves|saved> {x} more", "~{s} <inherit|inherits|inherited> {x}",
)  # fmt: skip
LOSE = (
    "{s} <give|gives|gave> {x} to {M}", "{s} <give|gives|gave> {M} {x}", "{s} <give|gives|gave> away {x}",
    "{s} <lose|loses|lost> {x}", "{s} <lose|loses|lost> {x} of them", "{s} <sell|sells|sold> {x}",
    "{s} <sell|sells|sold> {x} of them", "{s} <sell|sells|sold> {x} to {M}", "{s} <eat|eats|ate> {x} of them",
    "{s} <eat|eats|ate> {x}", "{s} <use|uses|used> {x}", "{s} <use|uses|used> up {x}", "{s} <spend|spends|spent> {x}",
    "{s} <break|breaks|broke> {x}", "{s} <throw|throws|threw> away {x}", "{s} <drop|drops|dropped> {x} of them",
    "{M} <take|takes|took> {x}", "{M} <take|takes|took> {x} of them", "{M} <steal|steals|stole> {x}",
    "{M} <buy|buys|bought> {x} of them", "{M} <eat|eats|ate> {x}", "{M} <borrow|borrows|borrowed> {x}",
    "{x} of them <break|break|broke>", "{x} <leave|leave|left>", "{x} <go|go|went> away", "{x} <are|are|were> sold",
    "{x} of them <get|get|got> lost", "{x} <are|are|were> eaten", "{x} of them <are|are|were> taken away",
    "{s} <remove|removes|removed> {x}", "{s} <send|sends|sent> {x} to {M}", "{s} <lend|lends|lent> {x} to {M}",
    "{s} <lend|lends|lent> {M} {x}", "{s} <return|returns|returned> {x}", "{s} <pay|pays|paid> {M} {x}",
    "{s} <share|shares|shared> {x} with {M}", "{s} <hand|hands|handed> {x} to {M}", "{s} <mail|mails|mailed> {x}",
    "{s} <cut|cuts|cut> off {x}", "{s} <burn|burns|burned> {x}", "{s} <deliver|delivers|delivered> {x}",
    "{x} <fly|fly|flew> away", "{x} <die|die|died>", "{x} <roll|roll|rolled> away", "{x} <disappear|disappear|disappeared>",
    "{s} <finish|finishes|finished> {x} of them", "{x} of them <are|are|were> broken", "{x} <walk|walk|walked> out",
    "~{s} <donate|donates|donated> {x}", "~{s} <waste|wastes|wasted> {x}", "~{M} <grab|grabs|grabbed> {x}",
    "~{s} <hand|hands|handed> out {x}", "~{x} <vanish|vanish|vanished>", "~{s} <part|parts|parted> with {x}",
    "~{x} of them <melt|melt|melted>", "~{s} <trade|trades|traded> away {x}", "~{x} <are|are|were> stolen by {M}",
)  # fmt: skip
RULES: dict[str, tuple[str, ...]] = {
    # -- something changes
    "start": (
        "{S} <have|has|had> {a} {o}", "{S} <have|has|had> {a} {o}", "{S} <have|has|had> {a} {o} {place}",
        "{S} <start|starts|started> with {a} {o}", "{S} <own|owns|owned> {a} {o}", "{S} <have|has|had> got {a} {o}",
        "{S} <keep|keeps|kept> {a} {o} {place}", "{S} <collect|collects|collected> {a} {o}",
        "{S} <buy|buys|bought> {a} {o}", "{S} <find|finds|found> {a} {o}", "{S} <make|makes|made> {a} {o}",
        "{S} <bring|brings|brought> {a} {o}", "{S} <put|puts|put> {a} {o} {place}", "{S} <pick|picks|picked> {a} {o}",
        "~{S} <count|counts|counted> {a} {o}", "~{S} <pack|packs|packed> {a} {o}", "~{S} <possess|possesses|possessed> {a} {o}",
    ),
    "there": (
        "there <are|are|were> {a} {o} {place}", "{a} {o} <are|are|were> {place}", "there <are|are|were> {a} {o}",
        "{place} there <are|are|were> {a} {o}", "we <see|see|saw> {a} {o} {place}", "{a} {o} <sit|sit|sat> {place}",
        "{a} {o} <lie|lie|lay> {place}", "~{a} {o} <can|can|could> be seen {place}",
    ),
    "then": (". then ", ". ", ". ", ", then ", ", and ", " and ", " but ", ". later ", ". after that ", ", ", ". today ",
        ". now ", ". yesterday ", ". on {day} ", " before ", ". one day ", ". in the evening ", "~. a week later ",
        "~ and afterwards "),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "aside": (
        "{S} <are|is|was> {n} years old. ", "{K} <like|likes|liked> {n} of the {color} ones. ",
        "it <is|is|was> {day}, {n} o'clock. ", "{K} <have|has|had> {n} sisters. ", "the weather <is|is|was> nice. ",
        "{K} <live|lives|lived> in house {n}. ", "{K} <watch|watches|watched>. ", "~{K} <sleep|sleeps|slept> for {n} hours. ",
    ),
    "now_asked": (
        "how many {o} {do} {s} have now?", "how many {o} {do} {s} have now?", "how many {do} {s} have now?",
        "how many {do} {s} have in the end?", "how many {o} {has} {s} got now?" , "how many is that now?",
        "what is the number of {o} now?", "how many {o} <are|are|were> there now?", "how many are there now?",
        "how many {o} are there in the end?", "what does that make?", "{o} now?", "how many now?",
        "now {s} <have|has|had> how many {o}?", "can you tell me how many {o} there are now?",
        "tell me the number of {o} now.", "find how many {o} there are now.", "~with how many {o} {do} {s} end up?",
        "~i wonder how many {o} that makes.", "~what is the final number of {o}?",
    ),
    "left_asked": (
        "how many {o} are left?", "how many are left?", "how many {o} {do} {s} have left?", "how many {do} {s} still have?",
        "how many {o} {do} {s} still have?", "how many remain?", "what is left?", "how many {o} remain?",
        "how many {do} {s} keep?", "how many {o} are still there?", "how many are still there?", "what remains?",
        "how many are not gone?", "{o} left?", "how many {o} {has} {s} got left?", "how many {has} {s} got left?",
        "with how many {o} {is} {s} left?", "tell me how many are left.", "how many {o} stay?", "how much is left?",
        "~how many {o} survive?", "~what number of {o} is left over?", "~how many {is} {s} left with?",
    ),
    "total_asked": (
        "how many {o} is that altogether?", "how many {o} are there in total?", "how many {o} are there in all?",
        "how many is that in total?", "what is the total?", "what is the total number of {o}?", "how many together?",
        "how many {o} all together?", "how many {o} do they have together?", "what do they make together?",
        "what is the sum?", "in total, how many {o}?", "total?", "altogether how many {o}?", "how many {o} is that?",
        "how many {o} {do} {s} have in all?", "can you count all {o}?", "count them all.", "how many in total",
        "~add them all up for me.", "~what is the combined number of {o}?", "~how many {o} does that come to?",
    ),
    "parts": (
        "{S} <have|has|had> {a} {o} and {M} <have|has|had> {b}", "{a} {o} <are|are|were> {place} and {b} {place2}",
        "{S} <find|finds|found> {a} {o} on {day} and {b} on {day}", "one {box} <hold|holds|held> {a} {o}, another {b}",
        "{S} <see|sees|saw> {a} {o} in the morning and {b} in the afternoon", "{S} <buy|buys|bought> {a} {color} and {b} {color2} {o}",
        "{S} <have|has|had> {a} {color} {o} and {b} {color2} ones", "{S} <make|makes|made> {a} {o} yesterday and {b} today",
        "{a} {o} here and {b} {o} there", "{a} {o} plus {b} {o}", "first {a} {o}, then {b}",
        "{S} <pick|picks|picked> {a} {o}, and {M} <pick|picks|picked> {b}", "there <are|are|were> {a} {color} {o} and {b} {color2} {o}",
        "{S} and {M} <bring|bring|brought> {a} and {b} {o}", "the first {box} <have|has|had> {a} {o} and the second {b}",
        "{S} <sell|sells|sold> {a} {o} on {day} and {b} on {day}", "last week {S} <read|reads|read> {a} {o}, this week {b}",
        "~{S} <score|scores|scored> {a} {o} at first and {b} at the end", "~{S} <own|owns|owned> {a} {o} while {M} <own|owns|owned> {b}",
    ),
    "three_parts": (
        "{S} <have|has|had> {a} {o}, {M} <have|has|had> {b} and {K} <have|has|had> {c}", "{a} {o}, {b} {o} and {c} {o}",
        "{S} <find|finds|found> {a} {o} on {day}, {b} on {day} and {c} on {day}", "there are {a} {color}, {b} {color2} and {c} white {o}",
        "{S} <have|has|had> {a} {color} {o}, {b} {color2} {o} and {c} black {o}", "three {boxes} <hold|hold|held> {a}, {b} and {c} {o}",
        "in one {box} there <are|are|were> {a} {o}, in the next {b} and in the last {c}",
        "{S} <make|makes|made> {a} {o} in the morning, {b} at noon and {c} at night",
        "~{S}, {M} and {K} <bring|bring|brought> {a}, {b} and {c} {o}",
    ),
    "taken_of": (  # the smaller number first
        "{S} <give|gives|gave> {b} of {his} {a} {o} to {M}", "{b} of the {a} {o} {place} <are|are|were> sold",
        "{b} of {a} {o} <are|are|were> broken", "of {a} {o}, {b} <are|are|were> gone", "of the {a} {o}, {b} <are|are|were> {color}",
        "out of {a} {o} {b} <get|get|got> lost", "{S} <eat|eats|ate> {b} of the {a} {o}", "{S} <sell|sells|sold> {b} out of {a} {o}",
        "{M} <take|takes|took> {b} of the {a} {o}", "{b} of our {a} {o} <disappear|disappear|disappeared>",
        "{S} <lose|loses|lost> {b} of {his} {a} {o}", "from {a} {o} {S} <take|takes|took> away {b}",
        "{S} <use|uses|used> {b} of {a} {o}", "{S} <want|wants|wanted> {a} {o} but only <have|has|had> {b}",
        "{S} <need|needs|needed> {a} {o} and <have|has|had> {b} so far", "{S} <have|has|had> read {b} of {a} {o}",
        "~among {a} {o}, {b} <are|are|were> bad", "~{S} <give|gives|gave> up {b} of {a} {o}",
    ),
    "rest_asked": (
        "how many {o} are left?", "how many are left?", "how many are not?", "how many {o} remain?", "how many others are there?",
        "how many are still missing?", "how many more {do} {s} need?", "what is left?", "how many is that short?",
        "how many {o} are still to come?", "~how many stay behind?", "~how many other {o} are there?",
    ),
    # -- two are compared
    "two": (
        "{S} <have|has|had> {a} {o} and {M} <have|has|had> {b}", "{S} <have|has|had> {a} {o}, {M} <have|has|had> {b}",
        "{S} <have|has|had> {a} {o} while {M} <have|has|had> {b} {o}", "{S} <collect|collects|collected> {a} {o}. {M} <collect|collects|collected> {b}",
        "one {box} <hold|holds|held> {a} {o}, another <hold|holds|held> {b}", "{S} <make|makes|made> {a} {o} and {M} only {b}",
        "the {color} team <have|has|had> {a} {o}, the {color2} team {b}", "there <are|are|were> {a} {color} {o} and {b} {color2} {o}",
        "{S} <sell|sells|sold> {a} {o} but {M} <sell|sells|sold> {b}", "{S} <get|gets|got> {a} points and {M} {b} points",
        "~{S} <catch|catches|caught> {a} {o}; {M} <catch|catches|caught> {b}",
    ),
    "gap_asked": (
        "what is the difference?", "how big is the difference?", "what's the difference between them?", "by how many {do} they differ?",
        "how many more is that?", "how many fewer is that?", "how many more <do|does|did> one have than the other?", "who has more and by how many?",
        "how many more {o}?", "find the difference.", "what is the gap?", "how far apart are they?", "~how much is one ahead of the other?",
    ),
    "more_asked": (
        "how many more {o} <do|does|did> {big} have than {small}?", "how many more <do|does|did> {big} have?", "how many {o} more <do|does|did> {big} have?",
        "by how many <do|does|did> {big} lead?", "how many fewer {o} <do|does|did> {small} have?", "how many fewer <do|does|did> {small} have than {big}?",
        "how many {o} less <do|does|did> {small} have?", "how many {o} is {small} behind {big}?", "how many does {small} need to catch up with {big}?",
        "~how much bigger is the number of {big}?", "~by how many is {big} ahead of {small}?",
    ),
    "measured": (
        "{S} is {a} {unit} {long} and {M} is {b} {unit} {long}. how much {longer} is {big}?",
        "{S} is {a} years old, {M} is {b}. how much older is {big}?", "{S} is {a}, {M} is {b}. what is the age difference?",
        "one {item} is {a} {unit} {long}, the other {b} {unit}. what is the difference?",
        "the {color} {item} costs {a} {money}, the {color2} one {b}. how much cheaper is the {cheap} one?",
        "the {color} {item} is {a} {unit} {long} and the {color2} one {b} {unit}. how much {longer} is the {dear} one?",
        "{S} weighs {a} kg and {M} weighs {b} kg. how much heavier is {big}?", "how much older is {big} if {S} is {a} and {M} is {b}?",
        "{S} paid {a} {money} and {M} paid {b}. how much more did {big} pay?", "a {item} costs {a} {money}, a {item2} {b}. how much more is that?",
        "yesterday it was {a} degrees, today {b}. by how many degrees did it change?",
        "~{S} ran {a} {unit} and {M} ran {b} {unit}. how much farther did {big} run?",
    ),
    # -- quantities and money
    "quantity_more": (
        "the {item} was {a} {unit} {long}. it grew by {b} {unit}. how {long} is it after that?", "{S} walked {a} {unit} and then {b} {unit}. how far did {s} walk?",
        "one {item} weighs {a} kg and another {b} kg. what do they weigh together?", "a {item} costs {a} {money} and a {item2} costs {b}. what do both cost?",
        "{S} has {a} {money} and earns {b} {money}. how much money does {s} have?", "{S} worked {a} hours on {day} and {b} on {day}. how many hours did {s} work?",
        "the temperature was {a} degrees and rose by {b}. what is it now?", "{S} paid {a} {money} for a {item} and {b} for a {item2}. how much did {s} spend?",
        "there were {a} litres in the tank. {S} filled in {b} more. how many litres are in it?", "{S} is {a}. how old will {s} be in {b} years?",
        "a train has {a} seats and a bus {b}. how many seats do they have?", "a trip takes {a} minutes by bus and {b} minutes on foot. how long is the whole trip?",
        "what is the total length of {a} {unit} and {b} {unit}?", "{S} owes {M} {a} {money} and {K} {b} {money}. how much is that?",
        "my {item} cost ${a} and my {item2} ${b}. how much did I pay?", "~{S} drove {a} km before lunch and {b} km after lunch. what distance is that?",
    ),
    "quantity_less": (
        "the {item} was {a} {unit} {long}. {S} cut off {b} {unit}. how {long} is it after that?", "{S} has {a} {money} and spends {b}. how much is left?",
        "{S} had {a} {money}. {s} bought a {item} for {b} {money}. how much money is left?", "the temperature was {a} degrees and fell by {b}. what is it now?",
        "there were {a} litres in the tank. {S} used {b}. how many litres are left?", "a book has {a} pages. {S} has read {b}. how many pages are left?",
        "{S} has to walk {a} {unit} and has walked {b}. how far is it still?", "a {item} cost {a} {money} and is now {b} {money} cheaper. what does it cost?",
        "{S} is {a}. how old was {s} {b} years ago?", "{S} is {a} years old and {M} is {b} years younger. how old is {M}?",
        "{S} is on page {b} of {a}. how many pages are to go?", "{S} saved ${a} and paid ${b} for a {item}. what does {s} have left?",
        "{S} lost {b} of {his} {a} kg. what does {s} weigh now?", "the film lasts {a} minutes, {b} are over. how many minutes remain?",
        "{S} pays {b} {money} from {his} {a} {money}. how much {has} {s} got now?", "~a candle of {a} cm burned down by {b} cm. how long is it?",
    ),
    # -- groups
    "groups": (
        "{S} <have|has|had> {a} {boxes} with {b} {o} each", "there <are|are|were> {a} {boxes} of {b} {o}", "{S} <buy|buys|bought> {a} {boxes} of {b} {o}",
        "each of {a} {boxes} <hold|holds|held> {b} {o}", "each of the {a} {boxes} <have|has|had> {b} {o}", "every {box} <have|has|had> {b} {o} and there <are|are|were> {a} {boxes}",
        "in each {box} there <are|are|were> {b} {o}. there <are|are|were> {a} {boxes}", "a {box} <hold|holds|held> {b} {o}. {S} <have|has|had> {a} {boxes}",
        "{a} {boxes} <contain|contain|contained> {b} {o} each", "{a} {boxes} with {b} {o} in each", "{S} <put|puts|put> {b} {o} in each of {a} {boxes}",
        "one {box} <have|has|had> {b} {o}, and {S} <have|has|had> {a} of them", "there <are|are|were> {b} {o} in every {box} and {a} {boxes}",
        "{S} <fill|fills|filled> {a} {boxes} with {b} {o} each", "{a} {boxes}, {b} {o} in each", "{a} people <have|have|had> {b} {o} each",
        "{a} {boxes}, each with {b} {o}", "{S} <plant|plants|planted> {a} rows of {b} {o}", "{a} friends each <bring|bring|brought> {b} {o}",
        "~{S} <carry|carries|carried> {a} {boxes} and {b} {o} <fit|fit|fitted> into each", "~all {a} {boxes} <hold|hold|held> {b} {o} apiece",
    ),
    "rates": (
        "{S} <read|reads|read> {a} pages a day. how many pages is that in {b} days?", "{S} <make|makes|made> {b} {o} every day for {a} days. how many {o} is that?",
        "{S} <eat|eats|ate> {a} {o} per day. how many in {b} days?", "{S} <find|finds|found> {a} {o} each day. how many {o} after {b} days?",
        "a {item} costs {a} {money}. what do {b} cost?", "one {item} costs {a} {money}. how much are {b} of them?", "how much do {b} {o} cost at {a} {money} each?",
        "{S} buys {b} {o} for {a} {money} each. how much does {s} pay?", "{S} earns {a} {money} an hour. how much does {s} earn in {b} hours?",
        "{S} walks {a} {unit} a day. how far is that in {b} days?", "one {item} weighs {a} kg. what do {b} of them weigh?", "one {box} needs {a} {o}. how many {o} do {b} {boxes} need?",
        "how many {o} are in {b} {boxes} if one {box} has {a}?", "there are {a} {o} in a {box}. how many {o} do {b} {boxes} have?", "if one ticket is {a} {money}, what are {b} tickets?",
        "there are {a} {o} per {box}. how many are in {b} {boxes}?", "each {o1} has {a} legs. how many legs do {b} have?", "a week has {a} days of work. how many days are {b} weeks?",
        "for one cake {S} needs {a} eggs. how many eggs for {b} cakes?", "{S} practises {a} minutes every day. how many minutes in {b} days?",
        "at {a} {money} apiece, what is the price of {b} {o}?", "~{S} types {a} words a minute. how many words in {b} minutes?", "~what would {b} {o} at {a} {money} per piece come to?",
    ),
    "and_more": (
        " and {c} loose ones", " and {c} more", ". {M} <give|gives|gave> {him} {c} more", ", plus {c} single ones", " and <find|finds|found> {c} more",
        ". {c} {o} <are|are|were> added", ". there <are|are|were> also {c} other {o}", "~, and {c} extra",
    ),
    "and_less": (
        ". {c} {o} <are|are|were> broken", " and {c} <are|are|were> lost", ". {s} <give|gives|gave> {c} to {M}", ". {s} <eat|eats|ate> {c} of them",
        ". {M} <take|takes|took> {c}", ". {s} <use|uses|used> {c} of them", ", but {c} <are|are|were> missing", ". {c} <get|get|got> lost", ". {s} <sell|sells|sold> {c}",
        "~. {c} of these <are|are|were> bad",
    ),
    "wages": (
        "{S} earns {a} {money} an hour and works {b} hours. then {s} {spends} {c} {money}. how much is left?", "{S} buys {a} {o} for {b} {money} each and pays {c} {money} less. how much does {s} pay?",
        "~{S} has {a} notes of {b} {money} and spends {c}. what remains?",
    ),
    "spends": ("spends", "pays", "loses", "gives away"),
    # -- words in between
    "money": ("euros", "dollars", "pounds", "euros", "dollars", "cents", "coins", "~francs"),
    "if_asked": ("if", "when", "if", "given that"),
}  # fmt: skip
EVENTS = {
    f"{name}_{letter}": tuple(one.replace("{x}", f"{{{letter}}}") for one in texts)
    for name, texts in (("gain", GAIN), ("lose", LOSE))
    for letter in "bc"
}
