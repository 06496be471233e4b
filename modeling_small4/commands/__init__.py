"""The `small4` command line: one file a command. Never part of a checkpoint's code; imports a command's needs only when
it runs.
"""
