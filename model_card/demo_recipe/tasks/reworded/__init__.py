"""Wider wording of the tasks: phrase grammars that say the same problems in many more ways, some of which only
evaluation draws.
"""
