"""The local page of ``clip-scgi ui``: an app of FastAPI and Jinja that reads the artifact store."""
