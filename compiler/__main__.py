"""``python -m tersor``."""

from tersor.cli.main import main

if __name__ == "__main__":
    main()
