"""Serving: `SelfEmo` for Python, labels for files, the HTTP server, the chat."""
