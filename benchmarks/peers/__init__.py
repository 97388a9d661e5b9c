"""The peers' side of the contests. These programs run in the peers' environment and import nothing of the project."""
