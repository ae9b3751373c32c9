"""What latents respond to: firing, specialization, taxonomy, interventions, probing."""
