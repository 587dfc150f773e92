"""A trained network in use: load it, ask it about pictures, export it."""
