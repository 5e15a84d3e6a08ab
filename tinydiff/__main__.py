"""`python -m tinydiff`: the `tinydiff` command."""

from tinydiff.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
