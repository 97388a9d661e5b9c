"""`python -m mmeureka_jax`, and where the `mmeureka` command starts."""

from __future__ import annotations

import sys

from mmeureka_jax.process.interrupts import ends_in_one_line


def main() -> int:
    return ends_in_one_line(_command)


def _command() -> int:
    from mmeureka_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
