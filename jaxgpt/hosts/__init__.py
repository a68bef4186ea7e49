"""Several processes of one job: they decide together, wait for one another, and one's error or end ends all.

Every process runs the same command. What depends on files that may change is decided by the first process
(number 0) and told to the others. All of them must come to the same calls of this package in the same order.
With one process everything here is only a function call.
"""

from jaxgpt.hosts.agreement import barrier, check_same, check_shared, decide, each, initialize, is_first
from jaxgpt.hosts.failure import announce, one_error_ends_all

__all__ = [
    "initialize",
    "is_first",
    "decide",
    "each",
    "barrier",
    "check_same",
    "check_shared",
    "one_error_ends_all",
    "announce",
]
