"""`python -m fxprune` is the command line."""

import sys

from fxprune.cli import main

sys.exit(main())
