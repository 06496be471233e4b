"""`python -m modeling_small4`: the same as `small4`."""

import sys

from .commands.cli import main

sys.exit(main())
