"""What keeps an installation running: the command line, the doctor, the sweep."""
