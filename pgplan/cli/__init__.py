"""The command line: ``pgplan plan|export|check|verify|calibrate|models|gpus|engines|lab|app``.

Exit codes: 0 done; 1 the plan does not fit, or a log or a measurement contradicts it (the report is printed
all the same); 2 bad input, told in one line on stderr; 3 worker processes failed, told in one line with the
traceback of the first below it; 130 after Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from pgplan.errors import InfeasibleError, LaunchError, PgplanError

# What shells report for a program that SIGINT or SIGPIPE ended.
_INTERRUPTED = 130
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 0 when all is done, 1 when a plan does not fit or measurements contradict it, 2 for bad input, 3
    when worker processes failed, and 130 after Ctrl-C.

    Args:
        argv: The words after the program's name; ``None``: those the process was started with.

    >>> main(["export", "missing.json"])
    2
    """
    if sys.stdout is None:  # closed by whoever started the program: print to no one
        sys.stdout = io.StringIO()
    # A terminal that cannot show an arrow or a dash gets a question mark rather than a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        # Imported here, so that Ctrl-C while they load ends as quietly as later.
        from pgplan.cli.arguments import parse_arguments
        from pgplan.cli.commands import COMMANDS

        args = parse_arguments(sys.argv[1:] if argv is None else argv)
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except InfeasibleError as error:
        return _say(str(error), code=1)
    except LaunchError as error:
        _say(str(error), code=3)
        # The notes hold the traceback of the worker that failed.
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 3
    except PgplanError as error:
        return _say(str(error), code=2)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:
        return _say(f"{error.filename or 'the output'} cannot be used: {error.strerror or error}", code=2)
    except RecursionError:
        return _say("a JSON file may not be nested so deeply; give one that pgplan or a model wrote", code=2)


def _say(message: str, *, code: int) -> int:
    # File names and values may hold line breaks; a report of one line stays one line.
    print(f"pgplan: {' '.join(message.split())}", file=sys.stderr)
    return code
