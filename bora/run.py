"""`python -m bora.run` is `bora run`."""

from bora.commands.run import main

if __name__ == "__main__":
    main()
