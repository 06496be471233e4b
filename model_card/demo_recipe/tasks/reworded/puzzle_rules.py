"""How puzzles are asked in wider wording: rules of a phrase grammar. Plain strings; `puzzles` draws from them.

Slots: `w` a word, `x` a letter, `i` which one ("first", "2nd"), `n` a list, each as it is written.
"""

RULES: dict[str, tuple[str, ...]] = {
    "w": ('"{word}"', '"{word}"', "'{word}'", "{word}", "{word}", "the word {word}", 'the word "{word}"'),
    "reverse": (
        "spell {w} backwards", "spell {w} in reverse", "reverse {w}", "reverse the letters of {w}", "{w} backwards",
        "write {w} backwards", "what is {w} backwards?", "what is {w} in reverse?", "read {w} from right to left",
        "how do you spell {w} backwards?", "give me {w} with its letters in reverse order", "turn {w} around",
        "write {w} from its last letter to its first", "say {w} from back to front", "flip {w}", "mirror {w}",
        "what do you get when you reverse {w}?", "start with the last letter and spell {w}", "{w}, but backwards",
        "list the letters of {w} from the end", "{w} reversed is what?", "i want {w} spelled backwards",
        "what does {w} look like the other way around?", "go through {w} from the end to the start",
        "~invert {w}", "~write {w} the wrong way round", "~begin at the end of {w} and go letter by letter to its start",
    ),
    "spell": (
        "spell {w}", "how is {w} spelled?", "how do you spell {w}?", "write {w} letter by letter", "give me the letters of {w}",
        "which letters are in {w}?", "list the letters of {w}", "what are the letters of {w}?", "{w}, letter by letter",
        "split {w} into letters", "break {w} up into its letters", "can you spell {w}?", "put a space between the letters of {w}",
        "~take {w} apart into letters", "~letter by letter, what is {w}?",
    ),
    "x": ("{letter}", "{letter}", "{letter}", "the letter {letter}", '"{letter}"', "'{letter}'"),
    "count": (
        "how many {letter}s are in {w}?", "how many {letter}'s are in {w}?", "how many {letter}'s are there in {w}?", "how often is {x} in {w}?",
        "how many times is {x} in {w}?", "how many times does {w} have {x}?", "how many times do you see {x} in {w}?", "count {x} in {w}",
        "count the {letter}s in {w}", "count the {letter}'s of {w}", "in {w}, how many times is there {x}?", "in {w}, count {x}",
        "what is the number of {letter}'s in {w}?", "number of {letter} in {w}?", "how often does {w} use {x}?", "how many {letter}'s has {w}?",
        "how many {letter} does {w} have?", "does {w} have {x}, and how often?", "find how many times {x} occurs in {w}", "how often do i write {x} in {w}?",
        "take {w}. how many {letter}'s are in it?", "i look at {w}. how often is {x} there?", "{w}: how many {letter}?", "tell me how often {x} appears in {w}",
        "~how many of the letters in {w} are {letter}?", "~how frequently does {x} come up in {w}?", "~the count of {x} within {w}?",
    ),
    "length": (
        "how many letters does {w} have?", "how many letters has {w}?", "how many letters are there in {w}?", "number of letters in {w}?",
        "how long is {w}?", "what is the length of {w}?", "the length of {w}?", "count the letters in {w}", "count all letters of {w}",
        "how many characters are in {w}?", "how many characters has {w}?", "tell me how long {w} is", "of how many letters is {w} made?",
        "{w} has how many letters?", "take {w}. how many letters is that?", "how many letters do i need to write {w}?", "{w}: how many letters?",
        "how many letters long is {w}?", "find the length of {w}", "in {w}, how many letters are there?", "when i spell {w}, how many letters do i say?",
        "~{w} consists of how many letters?", "~tell me the letter count of {w}", "~how many letters make up {w}?",
    ),
    "letter_at": (
        "what is the {i} letter in {w}?", "what's the {i} letter of {w}?", "which is the {i} letter of {w}?", "the {i} letter of {w}", "the {i} letter of {w}?",
        "give me the {i} letter of {w}", "find the {i} letter of {w}", "name the {i} letter of {w}", "{i} letter of {w}?", "in {w}, what is the {i} letter?",
        "in {w}, which letter is {i}?", "what letter is {i} in {w}?", "which letter stands {i} in {w}?", "take {w}. what is its {i} letter?",
        "say the {i} letter of {w}", "{w}: {i} letter?", "look at {w}. which letter comes {i}?", "which letter do you find {i} in {w}?",
        "~what would be the {i} letter of {w}?", "~pick the {i} letter out of {w}",
    ),
    "letter_number": (
        "what is letter {p} of {w}?", "which letter is number {p} in {w}?", "letter {p} of {w}?", "what is letter number {p} in {w}?", "give me letter {p} of {w}",
        "which letter stands at place {p} in {w}?", "~{w}, letter no. {p}?",
    ),
    "letter_first": (
        "with which letter does {w} begin?", "what letter does {w} begin with?", "{w} starts with which letter?", "which letter starts {w}?", "what is at the start of {w}?",
        "which letter is at the beginning of {w}?", "what does {w} start with?", "~tell me the initial of {w}",
    ),
    "letter_last": (
        "with which letter does {w} finish?", "what letter does {w} end with?", "{w} ends with which letter?", "what is at the end of {w}?", "what does {w} end in?",
        "which letter is at the end of {w}?", "the final letter of {w}?", "what is the last one of the letters in {w}?", "~{w} is closed by which letter?",
    ),
    "largest": ("largest", "biggest", "highest", "greatest", "maximum", "max", "top", "~most"),
    "smallest": ("smallest", "lowest", "least", "minimum", "min", "littlest", "~tiniest"),
    "best": (
        "what is the {best_word} number in {n}?", "which number is the {best_word}: {n}?", "which one is {best_word}, {n}?", "which one is the {best_word}? {n}",
        "{n}. which is the {best_word}?", "the {best_word} of {n}", "the {best_word} of {n}?", "find the {best_word} of {n}", "give me the {best_word} of these: {n}",
        "of {n}, which is the {best_word}?", "out of {n}, which one is the {best_word}?", "pick the {best_word}: {n}", "among {n}, what is the {best_word}?",
        "tell me the {best_word} of these numbers: {n}", "{best_word} of {n}?", "what's the {best_word} one: {n}", "from {n} take the {best_word}",
        "these are my numbers: {n}. which is the {best_word}?", "i have {n}. what is the {best_word}?", "the points are {n}. what is the {best_word}?",
        "our ages are {n}. what is the {best_word} age?", "prices: {n}. which is the {best_word} price?", "{best_word} value in {n}", "look at {n} and find the {best_word}",
        "list: {n}\nwhich is the {best_word} number?", "~say which of {n} is {best_word}", "~my dice show {n}. what is the {best_word}?",
    ),
    "up": (
        "from smallest to largest", "from small to big", "from low to high", "from the smallest to the biggest", "in ascending order", "ascending", "going up",
        "smallest first", "starting with the smallest", "starting from the lowest", "from least to greatest", "beginning with the lowest", "upwards",
        "~in rising order", "~with the least one in front",
    ),
    "down": (
        "from largest to smallest", "from big to small", "from high to low", "from the biggest to the smallest", "in descending order", "descending", "going down",
        "largest first", "starting with the largest", "starting from the highest", "from greatest to least", "biggest first", "downwards",
        "~in falling order", "~with the greatest one in front",
    ),
    "sort": (
        "sort {n} {way}", "sort {n}, {way}", "order {n} {way}", "put {n} {way}", "arrange {n} {way}", "sort these numbers {way}: {n}", "these should be put {way}: {n}",
        "arrange these numbers {way}: {n}", "list {n} {way}", "write {n} {way}", "order these {way}: {n}", "{n} {way}", "{n}: sort them {way}", "{n}. put them {way}",
        "can you sort {n} {way}?", "how do you sort {n} {way}?", "sort the list {way}: {n}", "i have {n}. sort them {way}", "numbers: {n}\nsort {way}",
        "give me {n} {way}", "write these {way}: {n}", "i need these numbers {way}: {n}", "~line up {n} {way}", "~bring {n} into order, {way}",
    ),
    "sort_up": (
        "sort {n}", "sort these: {n}", "order these numbers: {n}", "put these numbers in order: {n}", "arrange {n} in order", "{n} sorted", "put {n} into the right order",
        "{n}: put these in order", "sort my list: {n}", "what is {n} in order?", "~tidy up these numbers: {n}",
    ),
    "reverse_list": (
        "reverse {n}", "reverse this list: {n}", "reverse the order of {n}", "{n} in reverse order", "{n} backwards", "list these backwards: {n}", "turn this list around: {n}",
        "write this list from the end: {n}", "what is {n} in reverse?", "from last to first: {n}", "start with the last: {n}", "say {n} in reverse order",
        "give me this list from back to front: {n}", "list: {n}\nreverse it", "read the list backwards: {n}", "put the last word first and so on: {n}",
        "my list is {n}. reverse it", "~swap the order of these words: {n}", "~go through {n} from its end",
    ),
    "pick": (
        "what is the {i} word of {n}?", "which word is {i} in {n}?", "the {i} of {n}", "what is the {i} thing in this list: {n}", "give me the {i} one of {n}",
        "{n}. what is the {i} one?", "{n}: which is {i}?", "take the {i} word of this list: {n}", "pick the {i} item: {n}", "from {n} take the {i}", "which comes {i}? {n}",
        "in the list {n}, what is {i}?", "name the {i} word: {n}", "what stands {i} in {n}?", "list: {n}\nwhat is the {i} item?", "{i} of these: {n}",
        "find the {i} entry of {n}", "my list is {n}. what is the {i} thing?", "~{n}. i need the {i}", "~what do i read in {i} position: {n}",
    ),
    "many": (
        "how many words are in {n}?", "how many things are in this list: {n}", "count these: {n}", "{n}. how many is that?", "{n}: how many are there?", "how many are these? {n}",
        "how many items has this list: {n}", "count the items: {n}", "number of words in {n}?", "how long is this list: {n}", "what is the length of this list: {n}",
        "how many words do you see: {n}", "count how many words there are: {n}", "list: {n}\nhow many items?", "how many entries are in {n}?", "my bag has {n}. how many things is that?",
        "~how many did i name: {n}", "~tell me the size of this list: {n}",
    ),
}  # fmt: skip
