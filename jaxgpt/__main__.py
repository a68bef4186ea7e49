"""`python -m jaxgpt`, and the command `jaxgpt`."""

import os
import sys

from jaxgpt.huge_pages import begin_with_huge_pages
from jaxgpt.interrupt import ended_by_ctrl_c


def main() -> None:
    """Run the command line of this process, which Ctrl-C ends from its first import on."""
    begin_with_huge_pages()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own, which `!jaxgpt` is given, need not be installed here
    with ended_by_ctrl_c(trains=sys.argv[1:2] in (["pretrain"], ["finetune"])):
        from jaxgpt import cli

        cli.main()


if __name__ == "__main__":
    main()
