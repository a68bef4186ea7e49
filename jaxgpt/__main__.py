"""`python -m jaxgpt`, and the command `jaxgpt`."""

from jaxgpt.interrupt import ended_by_ctrl_c


def main() -> None:
    """Run the command line of this process, which Ctrl-C ends from its first import on."""
    with ended_by_ctrl_c():
        from jaxgpt import cli

        cli.main()


if __name__ == "__main__":
    main()
