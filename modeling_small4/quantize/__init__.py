"""Quantizing an unquantized checkpoint while it is loaded: int8 through torchao, 4 bits through torch."""
