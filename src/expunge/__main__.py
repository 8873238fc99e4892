"""`python -m expunge`."""

from __future__ import annotations

import sys

from expunge.cli.main import main

sys.exit(main())
