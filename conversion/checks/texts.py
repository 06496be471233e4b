"""Tokenizer and chat template: whether they are whole, fit the model, and lay out conversations as the code does.

The template is held against the layout in Python (`modeling_small4.chat`), on conversations of every kind.
"""

from pathlib import Path
from typing import Any

from modeling_small4.files_reading import one_line, shown
from modeling_small4.processing_small4 import Small4Processor
from modeling_small4.reasoning import BOS, EOS, IMG, PAD, REASONING_MODES
from modeling_small4.tokenization_small4 import Small4Tokenizer

from ..against import Fault
from ..checkpoint import CheckpointError, read_json
from ..source import Checkpoint
from ..vocabulary import TEKKEN, TOKENIZER, read_vocabulary
from .rows import SKIPPED, Row, judged

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
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CHATS: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    ([_SYSTEM, _ASKED], None),
    ([_SYSTEM, _ASKED, {"role": "assistant", "content": "Sunny."}, {"role": "user", "content": "And Rome?"}], None),
    ([_SYSTEM, _ASKED], [_TOOL]),
    (
        [
            _SYSTEM,
            _ASKED,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"sky": "clear"}'},
        ],
        [_TOOL],
    ),
    ([_SYSTEM, {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], None),
    (
        [
            _SYSTEM,
            _ASKED,
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Sun."}],
            },
            _ASKED,
        ],
        None,
    ),
)


def text_rows(source: Checkpoint) -> list[Row]:
    """The rows about the tokenizer and the chat template."""
    raw = source.layout == "mistral"
    names = [name for name in (TEKKEN, TOKENIZER) if (source.folder / name).is_file()]
    if not names or (raw and TEKKEN not in names):
        return [Row("tokenizer", SKIPPED, "the folder holds no tokenizer"), Row("template", SKIPPED, "no tokenizer")]
    faults = vocabulary_faults(source)
    try:
        processor = _processor(source.folder, raw)
    except (ValueError, OSError, KeyError) as error:
        faults.append(Fault("tokenizer", names[0], f"cannot be loaded: {one_line(error)}"))
        return [judged("tokenizer", faults, ""), Row("template", SKIPPED, "no tokenizer")]
    if not faults:
        faults += _round_trips(processor.tokenizer, source.folder)
    faults += _special(processor.tokenizer, source)
    rows = [
        judged("tokenizer", faults, f"{len(processor.tokenizer)} tokens; {len(TEXTS)} texts come back as they were")
    ]
    summary = "the package's own"
    if not _is_own(processor):
        count = len(CHATS) * len(REASONING_MODES)
        summary = f"another one than the package's; {count} conversations are laid out alike"
    elif raw or processor.chat_template is None:
        summary = "none in the folder; conversations are laid out by the package"
    return [*rows, judged("template", template_faults(processor), summary)]


def _is_own(processor: Small4Processor) -> bool:
    template = processor.chat_template
    return not isinstance(template, dict) and processor.tokenizer.is_own_template(template)


def _processor(folder: Path, raw: bool) -> Small4Processor:
    if not raw and (folder / TOKENIZER).is_file():
        return Small4Processor.from_pretrained(folder)
    from ..tokenizer import read_tokenizer  # imports transformers' converter

    return Small4Processor(None, read_tokenizer(folder / TEKKEN))


def vocabulary_faults(source: Checkpoint) -> list[Fault]:
    """Whether the vocabulary has the model's size, and the two tokenizer files, where both are there, agree."""
    faults = []
    size = source.config.text_config.vocab_size
    try:
        found = [read_vocabulary(source.folder, tekken) for tekken in (True, False)]
    except CheckpointError as error:
        return [Fault("tokenizer", "tokenizer", str(error))]
    for words in {each.file: each for each in found if each is not None}.values():
        if not size - _PADDED < words.tokens <= size:
            faults.append(Fault("tokenizer", words.file, f"has {words.tokens} tokens, the model's vocabulary {size}"))
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
            return [*faults, Fault("tokenizer", TEKKEN, f"cannot be loaded: {one_line(error)}")]
        differ = [text for text, one, other in zip(texts, ids, others, strict=True) if one != other]
        if differ:
            reason = f"encodes {shown(differ[0][:40])} otherwise than {TEKKEN}"
            faults.append(Fault("tokenizer", TOKENIZER, reason))
    return faults


def _special(tokenizer: Small4Tokenizer, source: Checkpoint) -> list[Fault]:
    """Special tokens at the ids that configuration and generation settings say."""
    text = source.config.text_config
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    wanted = {BOS: [text.bos_token_id], EOS: ends, PAD: [text.pad_token_id]}
    if source.config.vision_config is not None:
        wanted[IMG] = [source.config.image_token_index]
    faults = []
    for token, ids in wanted.items():
        mine = tokenizer.control_ids.get(token)
        if ids != [None] and mine not in ids:
            faults.append(Fault("tokenizer", token, f"is token {mine}, the model's configuration says {ids[0]}"))
    settings = source.folder / "generation_config.json"
    if settings.is_file():
        from ..tokenizer import reasoning_token_ids

        given = read_json(settings).get("reasoning_token_ids")
        mine_ids = reasoning_token_ids(tokenizer)
        for name, number in (given or {}).items() if isinstance(given, dict) else ():
            if name in mine_ids and mine_ids[name] != number:
                reason = f"{name} is {number} there, in the tokenizer {mine_ids[name]}"
                faults.append(Fault("tokenizer", "generation_config.json", reason))
    return faults


def template_faults(processor: Small4Processor) -> list[Fault]:
    """Conversations that the folder's template lays out otherwise than the code."""
    tokenizer = processor.tokenizer
    if _is_own(processor):
        return []
    faults = []
    for number, (chat, tools) in enumerate(CHATS):
        for mode in REASONING_MODES:
            pieces, _ = tokenizer.lay_out(chat, tools, None, mode, True, False)
            wanted = str(tokenizer.prompt_text(pieces[0]))
            try:
                found = processor.apply_chat_template(
                    chat, tools=tools, reasoning_mode=mode, add_generation_prompt=True, tokenize=False
                )
            except Exception as error:  # templates raise errors of their own
                found = f"({type(error).__name__}: {one_line(error)})"
            if found != wanted:
                at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), 0)
                begin = max(0, at - 20)
                reason = f"lays out {shown(found[begin : at + 40])}, expected {shown(wanted[begin : at + 40])}"
                faults.append(Fault("template", f"chat_template.jinja, conversation {number + 1}, {mode}", reason))
    return faults
