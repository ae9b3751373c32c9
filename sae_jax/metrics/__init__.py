"""How well a sparse autoencoder reconstructs, and what its latents do."""
