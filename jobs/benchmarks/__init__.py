"""The measurements of ``fastmaker benchmark``, each returning the header and the rows of a table."""
