"""Checkpoints for transformers' test classes: the demo's tokenizer and processor, and a tiny model of each class."""

import json
from pathlib import Path

import torch

from model_card.evals.record import ROOT
from modeling_small4 import (
    Small4Config,
    Small4ForCausalLM,
    Small4ForSequenceClassification,
    Small4ForTokenClassification,
    Small4Model,
    Small4Processor,
)

DEMO = str(ROOT / "model_card" / "demo")
CLASSES = (Small4Model, Small4ForCausalLM, Small4ForSequenceClassification, Small4ForTokenClassification)


def tiny_models(folder: str) -> None:
    """Write the folders that the tests of pipelines look for, as transformers' create_dummy_models.py names them."""
    named = {"tokenizer_classes": ["Small4Tokenizer"], "processor_classes": ["Small4ImageProcessor"]}
    for model_class in CLASSES:
        target = Path(folder) / "small4" / model_class.__name__
        torch.manual_seed(0)
        model_class(Small4Config.from_pretrained(DEMO)).save_pretrained(target)
        Small4Processor.from_pretrained(DEMO).save_pretrained(target)
    reports = Path(folder) / "reports"
    reports.mkdir()
    summary = {model_class.__name__: named for model_class in CLASSES}
    (reports / "tiny_model_summary.json").write_text(json.dumps(summary), encoding="utf-8")
