"""`python -m medsegcore.worker` is `medseg worker`, without the command line's packages."""

from medsegcore.worker.server import serve

if __name__ == "__main__":
    serve()
