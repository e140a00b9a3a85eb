"""`python -m mlexp` is the `mlexp` command."""

import sys

from mlexp.cli import main

sys.exit(main())
