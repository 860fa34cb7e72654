#!/usr/bin/env python3
"""The local cluster's command line; needs nothing but the system's Python (see cluster/cli.py)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.local.cluster.cli import main

if __name__ == "__main__":
    sys.exit(main())
