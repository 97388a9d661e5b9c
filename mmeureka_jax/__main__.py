"""`python -m mmeureka_jax`, and where the `mmeureka` command starts."""

from __future__ import annotations

import sys

from mmeureka_jax.process import interrupts


def main() -> int:
    try:
        interrupts.install()
        from mmeureka_jax import cli

        code = cli.main()
        interrupts.over()
    except BaseException:
        if not interrupts.came():
            raise
        code = interrupts.say()
        interrupts.over()
    return code


if __name__ == "__main__":
    sys.exit(main())
