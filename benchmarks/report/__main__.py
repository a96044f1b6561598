"""``python -m benchmarks.report A B``: a static page about two runs."""

from benchmarks.report.page import main

if __name__ == "__main__":
    raise SystemExit(main())
