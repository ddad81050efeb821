"""`python -m mediahost.cli`, for where the script is not on the path."""

from mediahost.cli import main

main()
