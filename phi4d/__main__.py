"""``python -m phi4d``."""

from phi4d.cli import main

if __name__ == "__main__":
    main()
