"""A model behind HTTP: the API of OpenAI and a page."""
