"""`python -m fastselfie`, as torchrun needs it."""

from fastselfie.cli import main

if __name__ == "__main__":
    main()
