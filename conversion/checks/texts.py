"""Tokenizer, chat template and settings of generation: whether they are whole, fit the model, and lay out conversations
as the code does.

The template is held against the layout in Python (`modeling_small4.chat`), on conversations of every kind.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_small4.files_reading import reason_of, shown
from modeling_small4.generation_prompt import ReasoningIds
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import BOS, EOS, IMG, IMG_BREAK, IMG_END, PAD, REASONING_MODES
from modeling_small4.tokenization_small4 import Small4Tokenizer

from ..against import Fault
from ..checkpoint import CheckpointError, read_json
from ..source import Checkpoint
from ..vocabulary import TEKKEN, TOKENIZER, read_vocabulary
from .images import image_row
from .rows import SKIPPED, Row, judged

GENERATION = "generation_config.json"
_PADDED = 256  # rows of the embedding that may be left over
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Il était une fois, dans l'Ouest : « déjà vu » - naïve façade, œuvre.",
    "Größe, Übermut und 3,50 € am 24.12.2025",
    "Москва — столица России; 東京は日本の首都です。 القاهرة هي عاصمة مصر",
    "🙂👩‍👩‍👧‍👦🇫🇷 e\u0301 \u00a0\u200b",
    "def f(x):\n\treturn {'a': x ** 2}  # comment\r\n\n\n",
    " leading,  double   and trailing spaces  ",
    "1234567890 3.14159 0xFF 1e-9 a_b-c/d\\e",
    "I'm sure she'll say DON'T; iPhone HTTPServer \u01c5a\u0301 x\u00b2 \u216b \uff11\uff12 ///\n  \n\t\n   end \n",
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
_ASKED: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
_SUNNY: dict[str, Any] = {"role": "assistant", "content": "Sunny."}
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
_OTHER_CALL = {"id": "bcdefghij", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
_RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"sky": "clear"}'}
_IMAGE, _TEXT = {"type": "image"}, {"type": "text", "text": "What is it?"}
_THOUGHT = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Sun."}]}


@dataclass(frozen=True)
class Chat:
    """A conversation. extra: a template may refuse it. needs: a template without this word need not know it."""

    about: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    extra: bool = False
    needs: str = ""


CHATS = (
    Chat("a question", [_SYSTEM, _ASKED]),
    Chat("two questions", [_SYSTEM, _ASKED, _SUNNY, {"role": "user", "content": "And Rome?"}]),
    Chat("tools", [_SYSTEM, _ASKED], [_TOOL]),
    Chat(
        "a tool call",
        [_SYSTEM, _ASKED, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT],
        [_TOOL],
    ),
    Chat("an image", [_SYSTEM, {"role": "user", "content": [_IMAGE, _TEXT]}]),
    Chat("a thought", [_SYSTEM, _ASKED, _THOUGHT, _ASKED]),
    Chat("an image behind its text", [_SYSTEM, {"role": "user", "content": [_TEXT, _IMAGE]}], extra=True),
    Chat("two images", [_SYSTEM, {"role": "user", "content": [_IMAGE, _TEXT, _IMAGE]}], extra=True),
    Chat(
        "a long conversation with two tool calls at once",
        [
            *(_SYSTEM, _ASKED, {"role": "assistant", "content": "I look.", "tool_calls": [_CALL, _OTHER_CALL]}),
            *(_RESULT, {**_RESULT, "tool_call_id": "bcdefghij"}, _SUNNY, _ASKED, _THOUGHT, _ASKED, _SUNNY, _ASKED),
        ],
        [_TOOL, _TOOL],
        extra=True,
    ),
    Chat("messages of one role in a row", [_SYSTEM, _ASKED, _ASKED, _SUNNY, _SUNNY, _ASKED], extra=True),
    Chat(
        "a thought in reasoning_content",
        [_SYSTEM, _ASKED, {**_SUNNY, "reasoning_content": "Hm."}, _ASKED],
        extra=True,
        needs="reasoning_content",
    ),
)


def text_rows(source: Checkpoint) -> list[Row]:
    """The rows about the tokenizer, the chat template and how images are read."""
    raw = source.layout == "mistral"
    names = [name for name in (TEKKEN, TOKENIZER) if (source.folder / name).is_file()]
    if not names or (raw and TEKKEN not in names):
        none = (Row("template", SKIPPED, "no tokenizer"), Row("images", SKIPPED, "no tokenizer"))
        return [Row("tokenizer", SKIPPED, "the folder holds no tokenizer"), *none]
    faults = vocabulary_faults(source)
    processor, unread = _loaded(source.folder, raw)
    if processor is None:
        faults += [fault for fault in unread if fault.what not in {each.what for each in faults}]
        none = (Row("template", SKIPPED, "no tokenizer"), Row("images", SKIPPED, "no tokenizer"))
        return [judged("tokenizer", faults, ""), *none]
    if not faults:
        faults += _round_trips(processor.tokenizer, source.folder)
    faults += _special(processor.tokenizer, source)
    faults += _generation_faults(processor.tokenizer, source)
    rows = [
        judged("tokenizer", faults, f"{len(processor.tokenizer)} tokens; {len(TEXTS)} texts come back as they were")
    ]
    wrong, left_out = template_faults(processor)
    summary = "the package's own"
    if not _is_own(processor):
        summary = f"another one than the package's; {len(CHATS) - len(left_out)} conversations are laid out alike"
        summary += f"; it does not know {', '.join(left_out)}" if left_out else ""
    elif raw or processor.chat_template is None:
        summary = "none in the folder; conversations are laid out by the package"
    return [*rows, judged("template", wrong, summary), image_row(source, processor.image_processor, unread)]


def _is_own(processor: Small4Processor) -> bool:
    template = processor.chat_template
    return not isinstance(template, dict) and processor.tokenizer.is_own_template(template)


def _loaded(folder: Path, raw: bool) -> tuple[Small4Processor | None, list[Fault]]:
    """The processor, without images where only their settings cannot be read; and what cannot be read."""
    faults: list[Fault] = []
    for load in (_processor, _without_images):
        try:
            return load(folder, raw), faults
        except (ValueError, OSError, KeyError) as error:
            faults = [Fault.of_file("tokenizer", folder, error)]
    return None, faults


def _processor(folder: Path, raw: bool) -> Small4Processor:
    if not raw and (folder / TOKENIZER).is_file():
        return Small4Processor.from_pretrained(folder)
    from ..tokenizer import read_tokenizer  # imports transformers' converter

    return Small4Processor(None, read_tokenizer(folder / TEKKEN))


def _without_images(folder: Path, raw: bool) -> Small4Processor:
    if not raw and (folder / TOKENIZER).is_file():
        return Small4Processor(None, Small4Tokenizer.from_pretrained(folder))
    return _processor(folder, raw)


def vocabulary_faults(source: Checkpoint) -> list[Fault]:
    """Whether the vocabulary has the model's size, and the two tokenizer files, where both are there, agree."""
    faults = []
    size = source.config.text_config.vocab_size
    try:
        found = [read_vocabulary(source.folder, tekken) for tekken in (True, False)]
    except CheckpointError as error:
        return [Fault.of_file("tokenizer", source.folder, error)]
    for words in {each.file: each for each in found if each is not None}.values():
        if not size - _PADDED < words.tokens <= size:
            faults.append(Fault("tokenizer", words.file, f"has {words.tokens} tokens, the model's vocabulary {size}"))
        if not words.ranked:
            faults.append(Fault("tokenizer", words.file, "its merges are not those that follow from its tokens"))
    if found[0] is not None and found[1] is not None and found[0].sha256 != found[1].sha256:
        faults.append(Fault("tokenizer", TOKENIZER, f"holds other tokens than {TEKKEN}: one is another model's"))
    return faults


def _round_trips(tokenizer: Small4Tokenizer, folder: Path) -> list[Fault]:
    """Texts to ids and back, as far as the vocabulary has their bytes; and, where both files are there, the same ids
    from each.
    """
    faults = []
    words = read_vocabulary(folder, tekken=not (folder / TOKENIZER).is_file())
    single = words.single if words else frozenset(range(256))
    texts = ["".join(letter for letter in text if single.issuperset(letter.encode())) for text in TEXTS]
    ids = tokenizer.encode_texts(texts)
    for text, each in zip(texts, ids, strict=True):
        back = tokenizer.decode(each, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != text:
            faults.append(Fault("tokenizer", "round trip", f"{shown(text[:40])} comes back as {shown(back[:40])}"))
    if (folder / TEKKEN).is_file() and (folder / TOKENIZER).is_file():
        from ..tokenizer import read_tokenizer

        try:
            others = read_tokenizer(folder / TEKKEN).encode_texts(texts)
        except (ValueError, OSError, KeyError) as error:
            return [*faults, Fault.of_file("tokenizer", folder, error)]
        differ = [text for text, one, other in zip(texts, ids, others, strict=True) if one != other]
        if differ:
            reason = f"encodes {shown(differ[0][:40])} otherwise than {TEKKEN}"
            faults.append(Fault("tokenizer", TOKENIZER, reason))
    return faults


def _special(tokenizer: Small4Tokenizer, source: Checkpoint) -> list[Fault]:
    """Special tokens at the ids that the configuration says, under their names, and `<s>` alone before a text."""
    text = source.config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    wanted = {BOS: [text.bos_token_id], EOS: ends, PAD: [text.pad_token_id]}
    if source.config.vision_config is not None:
        given = (source.params or {}).get("vision_encoder") or {}
        wanted[IMG] = [source.config.image_token_index]
        wanted |= {IMG_BREAK: [given.get("image_break_token_id")], IMG_END: [given.get("image_end_token_id")]}
    faults = []
    for token, ids in wanted.items():
        mine = tokenizer.control_ids.get(token)
        if ids == [None] and mine is None and token in (IMG_BREAK, IMG_END):
            faults.append(Fault("tokenizer", token, "is no special token, but images need it"))
        elif ids != [None] and mine not in ids:
            faults.append(Fault("tokenizer", token, f"is token {mine}, the model's configuration says {ids[0]}"))
    for name, token in (("bos_token", BOS), ("eos_token", EOS), ("pad_token", PAD)):
        if (said := getattr(tokenizer, name)) not in (None, token):
            faults.append(Fault("tokenizer", "tokenizer_config.json", f"{name} is {shown(said)}, it must be {token}"))
    plain, begun = tokenizer.encode_texts(["a"])[0], tokenizer("a")["input_ids"]
    begin = [tokenizer.control_ids.get(BOS)]
    if begun != begin + plain and (source.layout == "small4" or begun != plain):  # transformers' converter adds nothing
        reason = f"puts {shown(tokenizer.decode(begun))} in place of <s> and a text 'a' (post_processor)"
        faults.append(Fault("tokenizer", TOKENIZER, reason))
    return faults


def _generation_faults(tokenizer: Small4Tokenizer, source: Checkpoint) -> list[Fault]:
    """Special tokens that the settings of generation say otherwise than the tokenizer, or leave out or forbid."""
    file = source.folder / GENERATION
    if not file.is_file():
        lacking = source.layout == "small4"
        return (
            [Fault("tokenizer", GENERATION, "is missing; generate finds the reasoning mode by it")] if lacking else []
        )
    try:
        content = read_json(file)
    except CheckpointError as error:
        return [Fault.of_file("tokenizer", source.folder, error)]
    reasons = []
    for name, token in (("bos_token_id", BOS), ("eos_token_id", EOS), ("pad_token_id", PAD)):
        said, mine = content.get(name), tokenizer.control_ids.get(token)
        needed = said is not None or token == EOS  # where no end is named, transformers looks for none elsewhere
        if needed and mine not in (said if isinstance(said, list) else [said]):
            reasons.append(f"{name} is {shown(said)}, in the tokenizer {token} is {mine}")
    end = tokenizer.control_ids.get(EOS)
    for name, banned in (("suppress_tokens", end), ("bad_words_ids", [end])):
        if isinstance(content.get(name), list) and banned in content[name]:
            reasons.append(f"{name} forbids {EOS}, so no answer ends")
    reasons += _reasoning_faults(tokenizer, content.get("reasoning_token_ids"), source.layout == "small4")
    return [Fault("tokenizer", GENERATION, reason) for reason in reasons]


def _reasoning_faults(tokenizer: Small4Tokenizer, said: object, needed: bool) -> list[str]:
    """What is wrong with `reasoning_token_ids`, which only folders in our layout need."""
    from ..tokenizer import reasoning_token_ids

    mine = reasoning_token_ids(tokenizer)
    if said is None and needed and all(mine.values()):
        return ["reasoning_token_ids are missing; generate finds the reasoning mode by them"]
    if not isinstance(said, dict):
        return [] if said is None else [f"reasoning_token_ids is {shown(said)}, it must be an object"]
    reasons = [
        f"{name} is {shown(number)} there, in the tokenizer {mine[name]}"
        for name, number in said.items()
        if name in mine and mine[name] != number
    ]
    if not reasons and all(mine.values()):
        try:
            ReasoningIds.from_mapping(said)
        except ValueError as error:
            reasons.append(str(error))
    return reasons


def template_faults(processor: Small4Processor) -> tuple[list[Fault], list[str]]:
    """Conversations that the folder's template lays out otherwise than the code, and those that it does not know."""
    tokenizer = processor.tokenizer
    if _is_own(processor):
        return [], []
    settings = tokenizer.init_kwargs.get("reasoning_settings") or {"default": REASONING_MODES[0]}
    ways: list[tuple[str, str, dict[str, Any]]] = [(mode, mode, {"reasoning_mode": mode}) for mode in REASONING_MODES]
    ways.append(("no mode given", settings["default"], {}))
    template = str(processor.chat_template)
    if "enable_thinking" in template:
        ways.append(("enable_thinking", "high", {"enable_thinking": True}))
    found: dict[str, str] = {}  # reason -> where it was met first
    left_out = [chat.about for chat in CHATS if chat.needs not in template]
    for chat in CHATS:
        for way, mode, options in ways if chat.about not in left_out else ():
            pieces, _ = tokenizer.lay_out(chat.messages, chat.tools, None, mode, True, False)
            wanted = str(tokenizer.prompt_text(pieces[0]))
            try:
                text = processor.apply_chat_template(
                    chat.messages, tools=chat.tools, add_generation_prompt=True, tokenize=False, **options
                )
            except Exception as error:  # templates raise errors of their own
                if chat.extra and type(error).__name__ == "TemplateError":  # raise_exception(...)
                    left_out.append(chat.about)
                    break
                found.setdefault(f"cannot be rendered: {reason_of(error)}", f"{chat.about}, {way}")
                continue
            if text != wanted:
                at = next((i for i, (a, b) in enumerate(zip(text, wanted, strict=False)) if a != b), len(text))
                begin = max(0, min(at, len(wanted)) - 20)
                reason = f"lays out {shown(text[begin : begin + 60])}, expected {shown(wanted[begin : begin + 60])}"
                found.setdefault(reason, f"{chat.about}, {way}")
    return [Fault("template", f"chat_template.jinja, {where}", reason) for reason, where in found.items()], left_out
