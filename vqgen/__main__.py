"`python -m vqgen` is the command `vqgen`."
from vqgen.cli import main

if __name__ == "__main__": main()
