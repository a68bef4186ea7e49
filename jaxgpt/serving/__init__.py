"""A model served over HTTP: OpenAI's API and a web page."""
