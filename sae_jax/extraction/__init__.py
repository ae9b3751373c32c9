"""PyTorch side: from problems to a store of a language model's activations."""
