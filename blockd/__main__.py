"""`python -m blockd` is the same as the `blockd` command."""

from blockd.cli import main

if __name__ == "__main__":
    main()
