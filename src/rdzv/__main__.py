"""`python -m rdzv`: the `rdzv` command, for injected pods, which have the library but no console scripts."""

import sys

from rdzv.cli import main

sys.exit(main())
