"""How fast the project is: scripts that each print one JSON line. See README.md in this folder."""
