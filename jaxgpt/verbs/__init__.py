"""One file a verb: its arguments as a dataclass, and `run`, which composes the library and prints."""
