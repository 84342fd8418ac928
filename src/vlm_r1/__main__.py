"""`python -m vlm_r1 ...` is `vlm-r1 ...`: what torchrun starts on every process."""

from vlm_r1.cli import main

if __name__ == "__main__":
    main()
