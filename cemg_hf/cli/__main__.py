"""`python -m cemg_hf.cli …`, which launchers of several processes start."""

from . import main

if __name__ == "__main__":
    main()
