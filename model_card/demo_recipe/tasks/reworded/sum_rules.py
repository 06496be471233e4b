"""How sums, differences and products are asked for: rules of a phrase grammar. Plain strings; `sums` draws from them.

A result has names ("the sum of {a} and {b}") and commands ("add {a} and {b}"), both of which stand in the same frames;
"gap" is asked of two numbers whose larger has to be found.
"""

# What stands around a name of the result, and around a command.
NAMED = (
    "{what} {name}", "{what} {name}", "{what} {name}?", "{name}", "{name}?", "{name} =", "{name} = ?", "{name} is", "{name} is what?", "{name} is how much?", "{name} equals", "{name} equals what?", "{name}, please",
    "what does {name} equal?", "i want to know {name}", "i need {name}", "do you know {name}?", "could you tell me {name}?", "can you give me {name}?", "can you calculate {name}?", "the answer of {name}?", "please find {name}", "{name} makes?",
    "{name} gives?", "{name} is equal to", "so {name} is?", "what will {name} be?", "what would {name} be?", "quickly: {name}", "the result of {name}?", "{what} the result of {name}", "please tell me {name}", "{name}: how much is it?",
    "how much would {name} be?", "let me know {name}", "determine {name}", "solve {name}", "work out {name} for me", "how much does {name} come to?", "what do i get for {name}?", "which number is {name}?",
    "~ascertain {name}", "~{name} amounts to?", "~might you know {name}?", "~state {name}",
)  # fmt: skip
COMMANDED = (
    "{command}", "{command}", "{command}", "please {command}", "can you {command}?", "could you {command}?", "could you please {command}?", "i need you to {command}", "{command} for me", "{command} and tell me the result", "{command}, what do you get?",
    "if i {command}, what do i get?", "what do you get if you {command}?", "what do i get when i {command}?", "what happens if i {command}?", "what is the result if we {command}?", "help me {command}",
    "will you {command}?", "would you {command}, please?", "let us {command}", "let's {command}", "i want to {command}", "i have to {command}", "{command} and give me the answer", "{command} =", "{command}: what is it?", "now {command}",
    "{command} please", "{command} and say what comes out", "when you {command}, what number comes out?", "what comes out if you {command}?", "how do i {command}? what is the answer?", "try to {command}", "you should {command}",
    "your task: {command}", "do this: {command}", "we {command}. what is the result?", "suppose you {command}. what is the answer?", "~kindly {command}", "~were i to {command}, what would come out?", "~go ahead and {command}",
)  # fmt: skip
NAMES = {
    "+": (
        "{a} plus {b}", "{a} plus {b}", "{a} + {b}", "{a}+{b}", "{a} +{b}", "{a} and {b}", "{a} & {b}", "{a} and {b} together", "{a} and {b} in total", "{a} and {b} added", "{a} and {b} added together", "{a} and {b} added up", "{a} added to {b}", "the sum of {a} and {b}",
        "the sum {a} + {b}", "the total of {a} and {b}", "{a} increased by {b}", "{a} raised by {b}", "{a} more than {b}", "{a} with {b} more", "{a} with {b} added", "{a} combined with {b}", "{a} together with {b}", "the sum of the numbers {a} and {b}",
        "{a} plus another {b}", "{a} and another {b}", "{a} and {b} more", "the total when {a} is added to {b}", "both {a} and {b} together", "{a} and {b} combined", "{a} and {b} summed", "{a} and {b} all together", "{a} with {b} on top",
        "~the aggregate of {a} and {b}", "~{a} topped up with {b}", "~{a}, {b} higher",
    ),
    "-": (
        "{a} minus {b}", "{a} minus {b}", "{a} - {b}", "{a}-{b}", "{a} -{b}", "{a} take away {b}", "{a} less {b}", "{a} without {b}", "{a} reduced by {b}", "{a} decreased by {b}", "{a} lowered by {b}", "{b} less than {a}", "{b} fewer than {a}", "{b} below {a}",
        "{b} subtracted from {a}", "{b} taken from {a}", "{b} taken away from {a}", "{a} with {b} taken away", "{a} with {b} removed", "{a} after taking away {b}", "{a} with {b} less", "{b} smaller than {a}", "{a} diminished by {b}", "{a} minus the number {b}",
        "the result of {a} minus {b}", "{a} if you take off {b}", "the number that is {b} less than {a}", "{a} after you subtract {b}", "{a} but {b} less", "{b} deducted from {a}", "{b} off {a}",
        "~{a} cut by {b}", "~{a} short of {b}", "~{a}, {b} lower",
    ),
    "x": (
        "{a} times {b}", "{a} times {b}", "{a} x {b}", "{a}x{b}", "{a} * {b}", "{a}*{b}", "{a} multiplied by {b}", "{a} multiplied with {b}", "the product of {a} and {b}", "product of {a} and {b}", "{a} by {b}", "{a} groups of {b}", "{a} sets of {b}",
        "{a} lots of {b}", "{a} rows of {b}", "the product {a} x {b}", "{a} taken {b} times", "{a} times the number {b}", "the product of the numbers {a} and {b}", "{a} and {b} multiplied", "{a} and {b} multiplied together", "{a} added up {b} times",
        "{a} bags with {b} in each", "{a} pieces of {b}", "~{a} instances of {b}", "~{a} scaled by {b}", "~{a} repeated {b} times, added up",
    ),
    "x2": ("twice {a}", "double {a}", "{a} doubled", "two times {a}", "{a} times two", "the double of {a}", "twice the number {a}", "{a} taken twice", "two lots of {a}", "2 times {a}", "{a} times 2", "twice as much as {a}", "~{a} and the same again", "~{a} two times over"),
    "x3": ("three times {a}", "triple {a}", "{a} tripled", "{a} times three", "{a} three times", "{a} taken three times", "the triple of {a}", "three lots of {a}", "3 times {a}", "{a} times 3", "three times as much as {a}", "three times the number {a}", "~threefold {a}", "~{a} thrice"),
    "three": (
        "{a} + {b} + {c}", "{a}+{b}+{c}", "{a} plus {b} plus {c}", "the sum of {a}, {b} and {c}", "the total of {a}, {b} and {c}", "{a} and {b} and {c}", "{a}, {b} and {c} together", "{a}, {b} and {c} added up", "total of {a}, {b}, {c}",
        "sum of {a}, {b}, {c}", "{a} and {b} and {c} in total", "the three numbers {a}, {b} and {c} added", "{a} plus {b} and then plus {c}", "{a} and {b} plus {c}", "~{a} with {b} and with {c}",
    ),
}  # fmt: skip
COMMANDS = {
    "+": (
        "add {a} and {b}", "add {a} to {b}", "add {a} plus {b}", "add up {a} and {b}", "sum up {a} and {b}", "sum {a} and {b}", "put {a} and {b} together", "combine {a} and {b}", "raise {a} by {b}", "start with {a} and add {b}",
        "take {a} and add {b}", "take {a}, then add {b}", "total {a} and {b}", "count on {a} from {b}", "go up {a} from {b}", "add {a} with {b}", "calculate {a} and {b} together", "find the total of {a} and {b}", "find the sum of {a} and {b}", "add the numbers {a} and {b}",
        "add together {a} and {b}", "compute the sum of {a} and {b}", "make {a} {b} bigger", "begin at {a} and count {b} up", "~join {a} and {b} into one number", "~lump {a} and {b} together", "~let {a} grow by {b}",
    ),
    "-": (
        "subtract {b} from {a}", "subtract {b} from {a}", "take {b} from {a}", "take {b} away from {a}", "take away {b} from {a}", "remove {b} from {a}", "deduct {b} from {a}", "reduce {a} by {b}", "lower {a} by {b}", "drop {b} from {a}",
        "start with {a} and subtract {b}", "start at {a} and take away {b}", "take {a} and subtract {b}", "take {a}, then take away {b}", "count back {b} from {a}", "go down {b} from {a}", "take {b} off {a}", "calculate {a} minus {b}", "make {a} {b} smaller",
        "find what is left when {b} is taken from {a}", "begin at {a} and count {b} down", "pull {b} out of {a}", "~cut {a} by {b}", "~let {a} shrink by {b}",
    ),
    "x": (
        "multiply {a} by {b}", "multiply {a} by {b}", "multiply {a} and {b}", "multiply {a} with {b}", "multiply the numbers {a} and {b}", "take {a} times {b}", "take {a} and multiply it by {b}", "start with {a} and multiply by {b}", "find the product of {a} and {b}",
        "compute the product of {a} and {b}", "take {a} {b} times", "add {a} up {b} times", "calculate {a} times {b}", "get the product of {a} and {b}", "times {a} by {b}", "~scale {a} by {b}", "~blow {a} up by a factor of {b}",
    ),
    "x2": ("double {a}", "double the number {a}", "take {a} twice", "multiply {a} by two", "multiply {a} by 2", "take {a} times two", "take two times {a}", "~make {a} twice as big"),
    "x3": ("triple {a}", "triple the number {a}", "multiply {a} by three", "multiply {a} by 3", "take {a} three times", "take {a} times three", "~make {a} three times as big"),
    "three": (
        "add {a}, {b} and {c}", "add {a} and {b} and {c}", "sum up {a}, {b} and {c}", "sum {a}, {b}, {c}", "add up {a}, {b} and {c}", "add up these: {a}, {b}, {c}", "add {a} {b} {c}", "put {a}, {b} and {c} together", "add the three numbers {a}, {b}, {c}",
        "total {a}, {b} and {c}", "~pile {a}, {b} and {c} up into one number",
    ),
}  # fmt: skip
# Questions that are no frame with a name or a command.
OTHER = {
    "+": (
        "what do {a} and {b} {make}?", "what do {a} and {b} {make} together?", "i have {a}. add {b} to it", "i have {a} and get {b} more. how many is that?", "{a}. now add {b}", "{a} and {b}. total?", "which number is {a} more than {b}?", "what number is {a} greater than {b}?",
        "what do i get by adding {a} and {b}?", "adding {a} and {b} gives what?", "{a} grows by {b}. what is it then?", "i add {a} and {b}. result?", "here are two numbers: {a} and {b}. what is their sum?", "numbers: {a}, {b}. sum?",
        "{a}, {b}: add them", "{a} and {b}: sum?", "the numbers are {a} and {b}. add them", "if x is {a} and you add {b}, what is it?", "what is their sum: {a} and {b}", "{a} goes up by {b}. what is it now?", "from {a} go up {b}", "how many are {a} and {b}?",
        "what number do you reach from {a} going up {b}?", "~{a} on top of {b} makes what?", "~summing {a} and {b} leads to?",
    ),
    "-": (
        "what is left of {a} without {b}?", "what is left if you take {b} from {a}?", "what remains of {a} after {b} are gone?", "i have {a}. take {b} away", "i have {a} and lose {b}. how many is that?", "{a}. now subtract {b}", "from {a} take away {b}: what is left?",
        "which number is {b} less than {a}?", "what number is {b} smaller than {a}?", "what do i get by subtracting {b} from {a}?", "subtracting {b} from {a} gives what?", "taking {b} from {a}, what is it?", "{a} shrinks by {b}. what is it then?", "{a} goes down by {b}. what is it now?",
        "i take {b} from {a}. result?", "{b} is taken from {a}. what remains?", "what remains if {b} is subtracted from {a}?", "from {a} go down {b}", "from {a} take {b}", "from {a} subtract {b}", "if x is {a} and you subtract {b}, what is it?", "what number do you reach from {a} going down {b}?", "what remains when i take {b} from {a}?",
        "~strip {b} from {a} and say what is left", "~{b} leaves {a}: what stays?",
    ),
    "gap": (
        "what is the difference between {a} and {b}?", "tell me the difference of {a} and {b}", "difference between {a} and {b}?", "difference of {a} and {b}", "how far apart are {a} and {b}?", "how far is {a} from {b}?",
        "by how much do {a} and {b} differ?", "{a} and {b}: what is the difference?", "find the difference between {a} and {b}", "calculate the difference between {a} and {b}", "the difference between {a} and {b} is?", "i need the difference between {a} and {b}",
        "please give me the difference between {a} and {b}", "what is the distance between {a} and {b}?", "how big is the difference between {a} and {b}?", "how much do {a} and {b} differ?", "compute the difference of {a} and {b}", "numbers: {a}, {b}. difference?",
        "here are two numbers: {a} and {b}. what is their difference?", "what is the difference of the numbers {a} and {b}?", "how much is between {a} and {b}?", "~what gap lies between {a} and {b}?", "~measure the gap from {a} to {b}",
    ),
    "gap_down": (
        "how much more is {a} than {b}?", "how much larger is {a} than {b}?", "how much greater is {a} than {b}?", "by how much is {a} more than {b}?", "by how much is {a} larger than {b}?", "{a} is how much more than {b}?",
        "how much do i subtract from {a} to get {b}?", "what do i take from {a} to get {b}?", "{a} minus what is {b}?", "how much higher is {a} than {b}?", "how far is {a} above {b}?", "{a} is bigger than {b}. by how much?", "how many more is {a} than {b}?",
        "from {a} down to {b}, how much is that?", "~by how much does {a} beat {b}?", "~how much does {a} exceed {b} by?",
    ),
    "gap_up": (
        "how much less is {b} than {a}?", "how much smaller is {b} than {a}?", "what do i add to {b} to get {a}?", "how much do i add to {b} to get {a}?", "how much is missing from {b} to {a}?", "from {b} to {a}, how much is that?", "{b} plus what is {a}?",
        "{b} + ? = {a}", "how far is it from {b} to {a}?", "by how much is {b} less than {a}?", "by how much is {b} smaller than {a}?", "{b} is how much less than {a}?", "what must be added to {b} to make {a}?", "how much lower is {b} than {a}?", "how far is {b} below {a}?",
        "what is missing from {b} to reach {a}?", "how many do i need from {b} to {a}?", "~how much must {b} grow to be {a}?", "~{b} wants to be {a}. what does it lack?",
    ),
    "x": (
        "what do {a} times {b} {make}?", "i have {a}. multiply it by {b}", "how much are {a} times {b}?", "what comes out when {a} is multiplied by {b}?", "multiplying {a} by {b} gives what?", "{a}. now times {b}", "{a}, {b}: multiply them", "numbers: {a}, {b}. product?",
        "here are two numbers: {a} and {b}. what is their product?", "the numbers are {a} and {b}. multiply them", "what is their product: {a} and {b}", "{a} rows of {b} are how many?", "if x is {a}, what is {b} times x?", "what do i get by multiplying {a} by {b}?",
        "{a} and {b}: product?", "how many is {a} groups of {b}?", "{a} people with {b} each makes?", "what is {a} each time, {b} times?", "~the result of multiplying {a} and {b}?", "~{a} goes {b} times into what?",
    ),
    "x2": ("what is {a} doubled?", "what do two times {a} make?", "what number is twice {a}?", "what is twice as much as {a}?", "doubling {a} gives what?", "what do i get if i double {a}?", "~{a}, but two of it?"),
    "x3": ("what is {a} tripled?", "what do three times {a} make?", "what number is three times {a}?", "tripling {a} gives what?", "what do i get if i triple {a}?", "what is three times as much as {a}?", "~{a}, but three of it?"),
    "three": (
        "what do {a}, {b} and {c} {make}?", "what do {a} and {b} and {c} {make}?", "numbers: {a}, {b}, {c}. sum?", "i have {a}, {b} and {c}. total?", "{a}, {b}, {c}: add them", "how much are {a}, {b} and {c} together?", "my three numbers are {a}, {b} and {c}. what is the sum?",
        "~{a} and {b} and {c}, all together",
    ),
}  # fmt: skip
RULES: dict[str, tuple[str, ...]] = {
    "what": ("what is", "what's", "how much is", "tell me", "compute", "calculate", "find", "give me", "work out", "what is", "whats", "evaluate", "say", "show me", "figure out", "get", "can you work out", "please give me", "please calculate", "~reckon"),
    "make": ("make", "make", "equal", "add up to", "result in", "~yield"),
}  # fmt: skip
RULES |= {f"{sign}_other": texts for sign, texts in OTHER.items()}
RULES |= {f"{sign}_name": texts for sign, texts in NAMES.items()}
RULES |= {f"{sign}_command": texts for sign, texts in COMMANDS.items()}
RULES |= {f"{sign}_named": tuple(text.replace("{name}", f"{{{sign}_name}}") for text in NAMED) for sign in NAMES}
RULES |= {
    f"{sign}_commanded": tuple(text.replace("{command}", f"{{{sign}_command}}") for text in COMMANDED)
    for sign in COMMANDS
}
RULES |= {
    sign: tuple(f"{{{sign}_{form}}}" for form in ("named", "named", "commanded", "commanded", "other"))
    for sign in NAMES
}
RULES |= {gap: (f"{{{gap}_other}}",) for gap in ("gap", "gap_down", "gap_up")}
