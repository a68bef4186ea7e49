"""`python -m jaxgpt`."""

from jaxgpt.cli import main

if __name__ == "__main__":
    main()
