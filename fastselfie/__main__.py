"""Entry point of `python -m fastselfie`, which torchrun uses."""

from fastselfie.cli import main

if __name__ == "__main__":
    main()
