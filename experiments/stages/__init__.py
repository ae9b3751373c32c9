"""The stages of the study: each trains or reads SAEs, and gives the rows of one table."""
