"""`jaxgpt convert` as a script, for schedulers and notebooks that run files. The flags are the same.

python tools/convert_weights.py gpt2 weights/gpt2 --to nanogpt --check
"""

import sys

from jaxgpt.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
