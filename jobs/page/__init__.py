"""A page on which a model is tried in a browser: ``fastmaker page``."""
