"""Training many SAEs at once: a plan, one step lifted over members, and the loop."""
