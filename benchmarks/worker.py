"""Worker process that runs one implementation: `python -m benchmarks.worker`.

Each line on stdin is a JSON object with the key "command"; each line on stdout is the result.
Between commands the process blocks on stdin, so that it uses no CPU time while others are timed.
"""

import json
import os
import sys

import resflax


def main() -> None:
    """Runs commands until stdin closes."""
    resflax.tune_malloc()  # the same for all implementations; before JAX is imported
    from benchmarks.session import Session

    # Libraries print to stdout, which must only contain results: it becomes stderr for them.
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session()
    for line in sys.stdin:
        request = json.loads(line)
        result = getattr(session, request.pop("command"))(**request)
        print(json.dumps(result), file=results, flush=True)


if __name__ == "__main__":
    main()
