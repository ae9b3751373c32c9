"""What the study's document is made of: its tables, numbers, comparisons and figures."""
