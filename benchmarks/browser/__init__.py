"""Parts of web.py: the pages in a browser, what they are compared with, and kills of their server."""
