"""The command line as a module: ``python -m candid``."""

from candid.cli import main

if __name__ == "__main__":
    main()
