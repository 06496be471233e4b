"""What fits where: bytes and layouts computed from a configuration. Holds no tensors."""
