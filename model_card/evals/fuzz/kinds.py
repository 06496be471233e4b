"""Which kinds of cases there are, and how many of a thousand each gets."""

from . import chats, kills, pictures, requests, settings, texts, weights, whole
from .cases import Kind

# name -> (what makes a case, shares). Readers that take long get fewer.
CHEAP: dict[str, tuple[Kind, int]] = {
    "safetensors, converted": (weights.header_converted, 190),
    "safetensors, loaded": (weights.header_loaded, 174),
    "index, converted": (weights.index_converted, 60),
    "index, loaded": (weights.index_loaded, 90),
    "params.json": (settings.params, 12),
    "config.json": (settings.config, 12),
    "config.json of transformers": (settings.foreign_config, 6),
    "generation_config.json": (settings.generation, 60),
    "small4_manifest.json": (settings.manifest, 30),
    "processor_config.json": (settings.image_settings, 60),
    "adapter_config.json": (settings.adapter, 30),
    "tekken.json": (texts.tekken, 3),
    "tokenizer": (texts.tokenizer, 2),
    "processor": (texts.processor, 1),
    "images": (pictures.picture, 90),
    "conversations": (chats.conversation, 90),
    "requests": (requests.request, 90),
}

WHOLE: dict[str, tuple[Kind, int]] = {
    "loaded": (whole.loaded, 40),
    "converted": (whole.converted, 25),
    "verified": (whole.verified, 15),
    "served": (whole.served, 20),
}
KILLS: dict[str, tuple[Kind, int]] = {name: (kills.kind(name), 1) for name in kills.RUNS}
