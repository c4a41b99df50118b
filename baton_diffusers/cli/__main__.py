"""`python -m baton_diffusers.cli` is the command `baton`."""

from . import main


if __name__ == "__main__":
    main()
