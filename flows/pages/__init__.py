"""Pages and JSON API of `cleanshelf web`: FastAPI routes, templates and scripts. Each page is one module."""
