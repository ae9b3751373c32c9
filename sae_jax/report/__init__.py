"""Tables, figures and a page of a scored sweep; matplotlib and jinja2 are loaded here alone."""

from sae_jax.report.dashboard.html import page as page
