"""Writes docs/reference/, or says which pages differ: python -m tests.docs.reference [--check]."""

import argparse
import sys

from tests.docs.reference.pages import FOLDER, differing, write


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    if parser.parse_args().check:
        stale = differing()
        for name in stale:
            print(f"{FOLDER / name} differs from the code: run scripts/reference")
        return 1 if stale else 0
    for name in write():
        print(f"wrote {FOLDER / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
