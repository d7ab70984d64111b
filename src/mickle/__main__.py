"""``python -m mickle``, and what ``torchrun -m mickle VERB ...`` starts: the command line."""

from mickle.cli import main

if __name__ == "__main__":
    main()
