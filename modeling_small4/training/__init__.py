"""Tools for fine-tuning: collator, LoRA targets, callbacks. Loading and generating need none of it."""
