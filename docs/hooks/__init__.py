"""How the site is built: read by MkDocs through `site.py`, and by tests."""
