"""Reads and writes checkpoints of Small 4: `convert` changes the layout, `verify` compares two checkpoints.

Installed as `small4_conversion`. It may import `modeling_small4`; nothing there imports it except the command line,
lazily.
"""
