"""`python -m small_doge.cli`."""

from small_doge.cli import main

main()
