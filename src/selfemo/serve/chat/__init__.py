"""The chat: a session's state (session.py), in the terminal (terminal.py) and as a web page (web.py)."""
