"""Run the command line as ``python -m pgplan``."""

import sys

from pgplan.cli import main

sys.exit(main())
