"""`python -m tinygpt` runs the command `tinygpt`."""

from .cli import main

if __name__ == "__main__":
    main()
