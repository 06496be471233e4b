"""Checkpoints of Small 4 in and out: `convert` between three layouts, `verify` that two are the same.

Installed as `small4_conversion`. It may import `modeling_small4`; nothing there imports it, but for the command line,
lazily.
"""
