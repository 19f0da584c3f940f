"""`python -m lighttoken.inspect`, the earlier name of `lighttoken.show`.

This folder has no `__init__.py`, so that Python prefers its own module `inspect` to it for scripts beside this folder.
"""

from lighttoken.show import main

if __name__ == "__main__":
    main()
