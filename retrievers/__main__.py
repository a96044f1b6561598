"""``python -m retrievers VERB``; without a verb it lists them."""

from __future__ import annotations

import sys

from retrievers.cli import main

if __name__ == "__main__":
    sys.exit(main())
