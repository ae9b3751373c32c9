"""The PyTorch side: it turns problems into a store of a language model's activations."""
