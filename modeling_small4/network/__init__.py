"""What goes out to the network. Never part of a checkpoint's code."""
