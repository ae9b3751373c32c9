"""SAEs on disk: the project's own layout, and those of the libraries that the field uses."""
