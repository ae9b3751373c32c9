"""Tables and figures of a scored sweep; matplotlib is loaded here alone."""
