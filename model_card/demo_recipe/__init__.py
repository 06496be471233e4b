"""The demo checkpoint: its vocabulary, its generated data and its training. Writes into model_card/demo."""
