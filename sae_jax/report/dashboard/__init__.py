"""One HTML file of a sweep and its latents: what is shown, how it is packed, and the page.

glossary   what each number means, and its unit
pack       JSON that a script in the page unpacks
overview   members, settings with intervals, chance levels, loss curves
latents    what is known of every latent of one member
seeds      labels that several seeds of a setting share
html       the page, from `assets/` by Jinja
"""
